"""What `database/base.py` promises, as tests that every implementation runs."""

import asyncio

import pytest

from tollway.database.base import Database
from tollway.errors import Refused

INSERT = (
    "INSERT INTO prices (id, model, prompt_rate, completion_rate, created_at)"
    " VALUES (?, 'm1', 1, 1, 0)"
)


async def prices(database: Database) -> list[str]:
    return [id_ for (id_,) in await database.fetch("SELECT id FROM prices ORDER BY id")]


class DatabaseSuite:
    """Beside a subclass there is the fixture `database`, open and migrated; `no_such_table` is what
    its library raises."""

    no_such_table: type[Exception]

    async def test_what_was_executed_is_read(self, database: Database) -> None:
        changed = await database.execute((INSERT, ("a",)), (INSERT, ("b",)))

        assert changed == 1
        assert await prices(database) == ["a", "b"]

    async def test_statements_together_are_written_together_or_not_at_all(
        self, database: Database
    ) -> None:
        with pytest.raises(Refused):
            await database.execute((INSERT, ("a",)), (INSERT, ("a",)))

        assert await prices(database) == []

    async def test_what_is_refused_does_not_take_its_neighbours_along(
        self, database: Database
    ) -> None:
        answers = await asyncio.gather(
            *(database.execute((INSERT, (id_,))) for id_ in "abacb"), return_exceptions=True
        )

        assert sum(isinstance(answer, Refused) for answer in answers) == 2
        assert await prices(database) == ["a", "b", "c"]

    async def test_a_fault_of_the_program_is_no_fault_of_the_database(
        self, database: Database
    ) -> None:
        with pytest.raises(self.no_such_table):
            await database.execute(("INSERT INTO nothing VALUES (1)", ()))
        with pytest.raises(self.no_such_table):
            await database.fetch("SELECT 1 FROM nothing")

        assert await database.execute((INSERT, ("a",))) == 1

"""How much the writer commits at a time."""

import asyncio
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path

import pytest
from tests.support.sqlite import migrated

from tollway.database import writer
from tollway.database.sqlite import SqliteDatabase
from tollway.database.writer import Writer

INSERT = "INSERT INTO prices VALUES (?, 'm1', 1, 1, 0, NULL, NULL)"
PATIENCE_SECONDS = 10.0


class Writes:
    """Prices that nobody needs, and how many were in each commit."""

    def __init__(self, path: Path) -> None:
        self.sizes: list[int] = []
        self.database = SqliteDatabase(path, on_commit=lambda size, _: self.sizes.append(size))
        self._ids = count()

    async def together(self, number: int) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await asyncio.gather(*(self.one() for _ in range(number)))

    async def one(self) -> None:
        await self.database.execute((INSERT, (f"price {next(self._ids)}",)))


@pytest.fixture
async def writes(tmp_path: Path) -> AsyncIterator[Writes]:
    writes = Writes(migrated(tmp_path / "tollway.db"))
    writes.database.open()
    yield writes
    await writes.database.close()


async def test_as_much_as_last_time_is_committed_as_soon_as_it_is_there(
    writes: Writes, monkeypatch: pytest.MonkeyPatch
) -> None:
    await writes.together(8)
    while (last := writes.sizes[-1]) == 1:
        await writes.together(8)
    await asyncio.sleep(20 * writer.GATHER_SECONDS_MAX)  # nobody gathers now
    with monkeypatch.context() as patch:
        patch.setattr(writer, "GATHER_SECONDS_EACH", 2 * PATIENCE_SECONDS)
        patch.setattr(writer, "GATHER_SECONDS_MAX", 2 * PATIENCE_SECONDS)

        await writes.together(last)

        assert writes.sizes[-1] == last
    await writes.together(last)  # it gathers for long already, and must not when it closes


@pytest.fixture
def gathered(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """For how many the writer has waited, each time."""
    gathered: list[int] = []
    gather = Writer._gather  # pyright: ignore[reportPrivateUsage]

    def gather_and_tell(self: Writer, last: int) -> None:
        gathered.append(last)
        gather(self, last)

    monkeypatch.setattr(Writer, "_gather", gather_and_tell)
    return gathered


async def test_what_comes_alone_waits_for_nobody(writes: Writes, gathered: list[int]) -> None:
    for _ in range(3):
        await writes.one()

    assert writes.sizes == [1, 1, 1]
    assert gathered == []


async def test_after_a_pause_the_first_waits_for_nobody(
    writes: Writes, gathered: list[int]
) -> None:
    await writes.together(8)
    await asyncio.sleep(20 * writer.GATHER_SECONDS_MAX)
    before = list(gathered)
    assert before

    await writes.one()

    assert gathered == before


async def test_a_batch_can_be_larger_than_the_last(
    writes: Writes, gathered: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of those who come one behind the other, more than last time are taken together."""
    monkeypatch.setattr(writer, "STRAGGLERS_SECONDS", 0.1)
    await writes.together(2)
    await writes.together(2)
    while not gathered:
        await writes.together(2)

    last = gathered[-1]
    async with asyncio.TaskGroup() as tasks:
        for _ in range(2 * last):
            tasks.create_task(writes.one())
            await asyncio.sleep(0.001)

    assert max(writes.sizes) > last

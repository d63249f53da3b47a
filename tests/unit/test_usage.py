"""What was used, in sums. That both databases give the same is shown by the ledger's suite."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from tests.unit.api.admin.conftest import Office, open_office

from tollway.database.base import Database, Row, Statement
from tollway.errors import Refused, TollwayError
from tollway.usage import sums

DAY = 86_400


@pytest.fixture
async def office(tmp_path: Path) -> Office:
    """Three requests of two accounts: at the beginning of time, and 5 s and a day later."""
    office = await open_office(tmp_path / "tollway.db")
    for name in ("acme", "beta"):
        await office.do("account create", name=name)
    acme, beta = (office.accounts.named(name).id for name in ("acme", "beta"))
    await office.charged_request(acme, 3, number=1)
    await office.charged_request(beta, 5, number=5000 << 80)
    await office.charged_request(acme, 7, number=(DAY * 1000) << 80)
    return office


async def summed(office: Office, by: str, **span: object) -> list[tuple[object, ...]]:
    arguments = {"since": 0.0, "until": 2.0 * DAY, **span}
    report = await office.do("usage", by=by, **arguments)
    rows = cast("list[dict[str, object]]", report["data"])
    return [(row[by], row["requests"], row["completionTokens"], row["credits"]) for row in rows]


async def test_the_dearest_account_comes_first(office: Office) -> None:
    assert await summed(office, "account") == [("acme", 2, 2500, 10), ("beta", 1, 1250, 5)]


async def test_a_span_has_what_came_from_its_beginning_on_and_before_its_end(
    office: Office,
) -> None:
    assert await summed(office, "account", since=5.0, until=1.0 * DAY) == [("beta", 1, 1250, 5)]
    assert await summed(office, "account", since=5.001, until=1.0 * DAY) == []
    assert await summed(office, "account", since=1.0 * DAY) == [("acme", 1, 1750, 7)]


class Counted:
    """Implements `Database`, and counts how often it is read."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.reads = 0

    async def fetch(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        self.reads += 1
        return await self._database.fetch(sql, parameters)

    async def execute(self, *statements: Statement) -> int:
        return await self._database.execute(*statements)


async def test_what_is_read_does_not_grow_with_a_span_in_which_nothing_was(office: Office) -> None:
    counted = Counted(office.database)
    ten_years = 3650.0 * DAY

    found = await sums(counted, "account", 0.0, ten_years)

    assert sum(one.credits for one in found) == 15
    assert counted.reads < 12  # three hours at a time, of the day between the first and the last
    assert await sums(counted, "account", 2.0 * DAY, ten_years) == []
    assert counted.reads < 14


@pytest.mark.parametrize("since", [1.0 * DAY, 2.0 * DAY])
async def test_a_span_that_ends_before_it_begins_is_refused(office: Office, since: float) -> None:
    with pytest.raises(Refused, match="Let `until` be later than `since`"):
        await summed(office, "account", since=since, until=1.0 * DAY)


async def test_one_account_may_be_named(office: Office) -> None:
    assert await summed(office, "model", account="beta") == [("m1", 1, 1250, 5)]
    with pytest.raises(TollwayError, match="gamma"):
        await summed(office, "model", account="gamma")


async def test_tokens_are_told_with_their_names(office: Office) -> None:
    token, _ = await office.tokens.issue(
        office.accounts.named("acme").id, name="ci", scopes=("llm-all",)
    )
    await office.charged_request(token.account_id, 2, number=9000 << 80, token_id=token.id)

    report = await office.do("usage", by="token", since=8.0, until=10.0, account="acme")

    assert report["data"] == [
        {
            "token": token.id,
            "name": "ci",
            "account": "acme",
            "requests": 1,
            "promptTokens": 0,
            "completionTokens": 500,
            "cachedTokens": 0,
            "reasoningTokens": 0,
            "credits": 2,
        }
    ]


async def test_what_cannot_be_summed_by_is_refused(office: Office) -> None:
    with pytest.raises(Refused, match="by cannot be"):
        await summed(office, "colour")

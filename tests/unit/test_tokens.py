import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.support.clock import FixedClock

from tollway.accounts import Accounts
from tollway.database.base import Row, Statement
from tollway.database.sqlite import SqliteDatabase
from tollway.errors import AuthenticationFailed, InvalidRequest, NotFound, Refused, Unavailable
from tollway.tokens import Token, Tokens, new_secret


@pytest.fixture
def clock() -> FixedClock:
    return FixedClock()


@pytest.fixture
async def account(database: SqliteDatabase, clock: FixedClock) -> str:
    account = await Accounts(database, clock).create("acme", chain_head=lambda _: b"\0" * 32)
    return account.id


@pytest.fixture
def tokens(database: SqliteDatabase, clock: FixedClock) -> Tokens:
    return Tokens(database, clock)


def test_a_secret_has_the_shape_that_scanners_know() -> None:
    secrets = {new_secret() for _ in range(200)}
    assert len(secrets) == 200
    for secret in secrets:
        assert secret.startswith("tw_")
        assert len(secret) == len("tw_") + 43 + 6
        assert secret[3:].isalnum()
        assert secret.isascii()


async def test_an_issued_token_is_found_by_its_secret(tokens: Tokens, account: str) -> None:
    token, secret = await tokens.issue(account, name="laptop", scopes=["llm-all"])
    assert tokens.authenticate(secret) == token
    assert tokens.get(token.id) == token
    assert token.scopes == {"llm-all"}
    assert not token.strict


async def test_a_token_is_there_after_a_restart(
    tokens: Tokens, account: str, database: SqliteDatabase, clock: FixedClock
) -> None:
    token, secret = await tokens.issue(
        account,
        name="all of it",
        scopes=["account", "llm-all"],
        models=["a/b"],
        expires_in_seconds=60,
        requests_per_minute=0,
        spend_cap=0,
        strict=True,
    )
    again = Tokens(database, clock)
    await again.load()
    assert again.authenticate(secret) == token


async def test_the_secret_is_not_kept(
    tokens: Tokens, account: str, database: SqliteDatabase, tmp_path: Path
) -> None:
    token, secret = await tokens.issue(account, name="x", scopes=["llm-all"])
    assert secret not in repr(token)
    rows = await database.fetch("SELECT * FROM tokens")
    assert secret not in repr(rows)
    assert secret.encode() not in (tmp_path / "tollway.db-wal").read_bytes()


class _AnswerLost:
    """The database, where a write is done and nobody is told; meanwhile it is heard of."""

    def __init__(self, database: SqliteDatabase) -> None:
        self._database = database
        self.meanwhile: list[Callable[[], Awaitable[None]]] = []

    async def fetch(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        return await self._database.fetch(sql, parameters)

    async def execute(self, *statements: Statement) -> int:
        await self._database.execute(*statements)
        for one in self.meanwhile:
            await one()
        raise Unavailable("The database cannot be reached now.")


async def test_a_revocation_whose_answer_was_lost_stands_where_it_was_heard_of(
    database: SqliteDatabase, tokens: Tokens, account: str, clock: FixedClock
) -> None:
    token, secret = await tokens.issue(account, name="x", scopes=["llm-all"])
    broken = _AnswerLost(database)
    here = Tokens(broken, clock)
    await here.load()
    clock.advance(0.12345)
    broken.meanwhile.append(lambda: here.read_again([token.id]))

    with pytest.raises(Unavailable):
        await here.revoke(token.id)

    with pytest.raises(AuthenticationFailed):
        here.authenticate(secret)


async def test_malformed_unknown_and_revoked_get_one_answer(tokens: Tokens, account: str) -> None:
    token, revoked = await tokens.issue(account, name="x", scopes=["llm-all"])
    await tokens.revoke(token.id)
    answers: set[tuple[str, str]] = set()
    typo = revoked[:-1] + ("a" if revoked[-1] != "a" else "b")
    for secret in (revoked, new_secret(), typo, "tw_", "", "sk-" + "x" * 49, "é" * 52, "x" * 9999):
        with pytest.raises(AuthenticationFailed) as refused:
            tokens.authenticate(secret)
        answers.add((refused.value.code, refused.value.message))
    assert len(answers) == 1
    assert answers.pop()[0] == "invalid_api_key"


async def test_a_token_expires_at_its_second(
    tokens: Tokens, account: str, clock: FixedClock
) -> None:
    token, secret = await tokens.issue(account, name="x", scopes=["llm-all"], expires_in_seconds=60)
    clock.advance(59.9)
    assert tokens.authenticate(secret).is_live(clock.now())
    clock.advance(0.1)
    assert not token.is_live(clock.now())
    with pytest.raises(AuthenticationFailed) as refused:
        tokens.authenticate(secret)
    assert refused.value.code == "token_expired"


async def test_a_revoked_token_is_refused_from_the_next_request_on(
    tokens: Tokens, account: str, database: SqliteDatabase, clock: FixedClock
) -> None:
    token, secret = await tokens.issue(account, name="x", scopes=["llm-all"])
    tokens.authenticate(secret)

    revoked = await tokens.revoke(token.id)

    assert revoked.revoked_at == clock.now()
    assert await tokens.revoke(token.id) == revoked
    again = Tokens(database, clock)
    await again.load()
    for either in (tokens, again):
        with pytest.raises(AuthenticationFailed):
            either.authenticate(secret)


async def test_another_accounts_token_is_not_found(tokens: Tokens, account: str) -> None:
    token, secret = await tokens.issue(account, name="x", scopes=["llm-all"])
    for missing, owner in ((token.id, "acc_other"), ("tok_none", account), ("tok_none", None)):
        with pytest.raises(NotFound):
            await tokens.revoke(missing, account_id=owner)
    assert tokens.authenticate(secret) == token
    assert tokens.list(account) == tokens.list() == [token]
    assert tokens.list("acc_other") == []


async def test_a_secret_in_place_of_an_id_is_not_repeated_and_told_to_its_account_alone(
    tokens: Tokens, account: str
) -> None:
    token, secret = await tokens.issue(account, name="x", scopes=["llm-all"])
    mistyped = secret[:-1] + ("a" if secret[-1] != "a" else "b")
    told: list[str] = []
    for given, owner in ((secret, account), (secret, "acc_other"), (mistyped, None)):
        with pytest.raises(NotFound) as refused:
            await tokens.revoke(given, account_id=owner)
        told.append(str(refused.value))
        assert given not in told[-1]

    assert [token.id in one for one in told] == [True, False, False]
    assert tokens.authenticate(secret) == token


async def test_an_account_lists_its_own_tokens_oldest_first_also_after_a_restart(
    tokens: Tokens, account: str, database: SqliteDatabase, clock: FixedClock
) -> None:
    other = await Accounts(database, clock).create("other", chain_head=lambda _: b"\0" * 32)
    issued: list[str] = []
    for name, owner in (("first", account), ("not its own", other.id), ("second", account)):
        clock.advance(1)
        token, _ = await tokens.issue(owner, name=name, scopes=["llm-all"])
        issued.append(token.name)
    again = Tokens(database, clock)

    await again.load()

    for either in (tokens, again):
        assert [token.name for token in either.list(account)] == ["first", "second"]
        assert [token.name for token in either.list()] == issued


@pytest.mark.parametrize("scopes", [[], ["root"], ["llm-all", "admin"]])
async def test_only_known_scopes_are_granted(
    tokens: Tokens, account: str, scopes: list[str]
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await tokens.issue(account, name="x", scopes=scopes)
    assert refused.value.param == "scopes"


@pytest.mark.parametrize("name", ["", "x" * 101, "a\nb", "\x1b[31m"])
async def test_a_name_is_short_and_printable(tokens: Tokens, account: str, name: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await tokens.issue(account, name=name, scopes=["llm-all"])
    assert refused.value.param == "name"


class _AnswerLate:
    """The database, where something happens before what was read arrives, or (`after`) what was
    written is told."""

    def __init__(self, database: SqliteDatabase) -> None:
        self._database = database
        self.meanwhile: list[Callable[[], Awaitable[object]]] = []
        self.after: list[Callable[[], Awaitable[object]]] = []

    async def fetch(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        rows = await self._database.fetch(sql, parameters)
        while self.meanwhile:
            await self.meanwhile.pop(0)()
        return rows

    async def execute(self, *statements: Statement) -> int:
        changed = await self._database.execute(*statements)
        while self.after:
            await self.after.pop(0)()
        return changed


class _Unwritten(_AnswerLate):
    """The same, where nothing is written."""

    async def execute(self, *statements: Statement) -> int:
        while self.meanwhile:
            await self.meanwhile.pop(0)()
        raise Unavailable("The database cannot be written now.")


async def test_a_token_that_is_revoked_while_it_is_read_again_stays_revoked(
    database: SqliteDatabase, tokens: Tokens, account: str, clock: FixedClock
) -> None:
    token, secret = await tokens.issue(account, name="t", scopes=["llm-all"])
    late = _AnswerLate(database)
    here = Tokens(late, clock)
    await here.load()
    late.meanwhile.append(lambda: here.revoke(token.id))

    await here.read_again([token.id])

    with pytest.raises(AuthenticationFailed):
        here.authenticate(secret)


async def test_a_token_that_is_read_again_unchanged_stays_the_same_object(
    tokens: Tokens, account: str
) -> None:
    token, secret = await tokens.issue(account, name="t", scopes=["llm-all"])
    await tokens.read_again([token.id])
    assert tokens.authenticate(secret) is tokens.get(token.id) is token


# --- limits that are changed ----------------------------------------------------------------------


_numbers = itertools.count()


def noted(before: Token, after: Token, only_if: Statement) -> Statement:
    """An entry of the audit: the names and rates of before and after."""
    details = [[one.name, one.requests_per_minute] for one in (before, after)]
    query, parameters = only_if
    return (
        "INSERT INTO audit (id, actor, action, subject, reason, details, created_at)"
        f" SELECT ?, 'me', 'token set', ?, '', ?, 0 WHERE EXISTS ({query})",
        (f"aud_{next(_numbers):06}", before.id, json.dumps(details), *parameters),
    )


async def notes(database: SqliteDatabase) -> list[object]:
    rows = await database.fetch("SELECT details FROM audit ORDER BY id")
    return [json.loads(row[0]) for row in rows]


async def again(database: SqliteDatabase, clock: FixedClock) -> Tokens:
    """As a restart finds them."""
    tokens = Tokens(database, clock)
    await tokens.load()
    return tokens


async def test_what_is_set_is_in_force_at_once_and_after_a_restart(
    tokens: Tokens, account: str, database: SqliteDatabase, clock: FixedClock
) -> None:
    token, secret = await tokens.issue(account, name="x", scopes=["llm-all"], spend_cap=5)
    clock.advance(100)

    changed = await tokens.set_limits(
        token.id,
        noted,
        name="new",
        models=["b", "a", "b"],
        requests_per_minute=7,
        expires_in_seconds=60,
        spend_cap=9,
        strict=True,
    )

    assert tokens.authenticate(secret) is tokens.get(token.id) is changed
    assert (changed.name, changed.models, changed.requests_per_minute) == ("new", {"a", "b"}, 7)
    assert (changed.spend_cap, changed.strict) == (9, True)
    assert changed.expires_at == clock.now() + 60
    assert (await again(database, clock)).authenticate(secret) == changed
    assert await notes(database) == [[["x", None], ["new", 7]]]


async def test_a_limit_that_is_not_named_stays_and_a_word_takes_it_away(
    tokens: Tokens, account: str
) -> None:
    token, _ = await tokens.issue(
        account,
        name="x",
        scopes=["llm-all"],
        models=["a"],
        expires_in_seconds=60,
        requests_per_minute=3,
        spend_cap=5,
        strict=True,
    )

    first = await tokens.set_limits(token.id, noted, strict=False)
    second = await tokens.set_limits(
        token.id,
        noted,
        models="all",
        requests_per_minute="default",
        expires_in_seconds="never",
    )

    assert (first.models, first.requests_per_minute, first.spend_cap) == ({"a"}, 3, 5)
    assert (first.expires_at, first.strict) == (token.expires_at, False)
    assert (second.models, second.requests_per_minute, second.expires_at) == (None, None, None)
    assert (second.name, second.spend_cap, second.strict) == ("x", 5, False)


async def test_a_token_that_has_expired_may_be_given_another_end(
    tokens: Tokens, account: str, clock: FixedClock
) -> None:
    token, secret = await tokens.issue(account, name="x", scopes=["llm-all"], expires_in_seconds=60)
    clock.advance(61)
    with pytest.raises(AuthenticationFailed):
        tokens.authenticate(secret)

    await tokens.set_limits(token.id, noted, expires_in_seconds=5)

    assert tokens.authenticate(secret).expires_at == clock.now() + 5
    clock.advance(5)
    with pytest.raises(AuthenticationFailed):
        tokens.authenticate(secret)


async def test_a_revoked_token_and_an_unknown_one_cannot_be_set(
    tokens: Tokens, account: str, database: SqliteDatabase
) -> None:
    token, secret = await tokens.issue(account, name="x", scopes=["llm-all"])
    await tokens.revoke(token.id)

    with pytest.raises(Refused, match=r"was revoked, for good\. Issue another one"):
        await tokens.set_limits(token.id, noted, name="new")
    with pytest.raises(NotFound, match="There is no token 'tok_none'"):
        await tokens.set_limits("tok_none", noted, name="new")
    with pytest.raises(NotFound) as refused:
        await tokens.set_limits(secret, noted, name="new")

    assert secret not in refused.value.message
    assert await notes(database) == []


@pytest.mark.parametrize("name", ["", "x" * 101, "a\nb", "\x1b[31m"])
async def test_a_name_that_none_is_issued_with_is_not_set(
    tokens: Tokens, account: str, name: str
) -> None:
    token, _ = await tokens.issue(account, name="x", scopes=["llm-all"])
    with pytest.raises(InvalidRequest) as refused:
        await tokens.set_limits(token.id, noted, name=name)
    assert refused.value.param == "name"
    assert tokens.get(token.id) == token


async def test_a_token_without_a_spend_cap_gets_none(tokens: Tokens, account: str) -> None:
    token, _ = await tokens.issue(account, name="x", scopes=["llm-all"])
    with pytest.raises(Refused, match=r"without a spend cap.* Issue another one with --spend-cap"):
        await tokens.set_limits(token.id, noted, name="new", spend_cap=5)
    assert tokens.get(token.id) == token


async def test_changes_at_the_same_time_do_not_lose_each_other(
    tokens: Tokens, account: str, database: SqliteDatabase, clock: FixedClock
) -> None:
    token, _ = await tokens.issue(account, name="x", scopes=["llm-all"], spend_cap=5)
    elsewhere = await again(database, clock)  # as a replica that has heard of nothing yet

    await asyncio.gather(
        tokens.set_limits(token.id, noted, name="new"),
        elsewhere.set_limits(token.id, noted, requests_per_minute=7),
        tokens.set_limits(token.id, noted, spend_cap=9),
        elsewhere.set_limits(token.id, noted, strict=True),
    )

    await tokens.read_again([token.id])
    known = tokens.get(token.id)
    assert known is not None
    assert (known.name, known.requests_per_minute, known.spend_cap) == ("new", 7, 9)
    assert known.strict
    assert (await again(database, clock)).get(token.id) == known
    assert len(await notes(database)) == 4


async def test_each_of_two_changes_of_one_limit_is_noted_after_the_other(
    tokens: Tokens, account: str, database: SqliteDatabase, clock: FixedClock
) -> None:
    token, _ = await tokens.issue(account, name="x", scopes=["llm-all"])
    late = _AnswerLate(database)
    here = await again(database, clock)
    slow = Tokens(late, clock)
    await slow.load()

    async def set_before() -> None:
        await here.set_limits(token.id, noted, requests_per_minute=3)

    late.meanwhile.append(set_before)
    changed = await slow.set_limits(token.id, noted, requests_per_minute=7)

    assert changed.requests_per_minute == 7
    assert await notes(database) == [[["x", None], ["x", 3]], [["x", 3], ["x", 7]]]


async def test_a_revocation_elsewhere_between_reading_and_writing_wins(
    tokens: Tokens, account: str, database: SqliteDatabase, clock: FixedClock
) -> None:
    token, secret = await tokens.issue(account, name="x", scopes=["llm-all"])
    late = _AnswerLate(database)
    here = Tokens(late, clock)
    await here.load()
    late.meanwhile.append(lambda: tokens.revoke(token.id))

    with pytest.raises(Refused, match="was revoked"):
        await here.set_limits(token.id, noted, name="new")

    restarted = await again(database, clock)
    with pytest.raises(AuthenticationFailed):
        restarted.authenticate(secret)
    assert await notes(database) == []


async def test_a_revocation_while_limits_are_set_is_at_once_and_stays(
    tokens: Tokens, account: str, database: SqliteDatabase, clock: FixedClock
) -> None:
    token, secret = await tokens.issue(account, name="x", scopes=["llm-all"])
    late = _AnswerLate(database)
    here = Tokens(late, clock)
    await here.load()
    refused_at: list[bool] = []
    setting = asyncio.create_task(here.set_limits(token.id, noted, requests_per_minute=7))

    async def revoke_now() -> None:
        revoking = asyncio.create_task(here.revoke(token.id))
        await asyncio.sleep(0)
        with pytest.raises(AuthenticationFailed):
            here.authenticate(secret)
        refused_at.append(True)
        await revoking

    late.after.append(revoke_now)
    await setting

    known = here.get(token.id)
    assert known is not None
    assert refused_at == [True]
    assert (known.revoked_at, known.requests_per_minute) == (clock.now(), 7)
    assert (await again(database, clock)).get(token.id) == known


async def test_a_revocation_that_is_not_on_disk_leaves_what_was_set_meanwhile(
    tokens: Tokens, account: str, database: SqliteDatabase, clock: FixedClock
) -> None:
    token, secret = await tokens.issue(account, name="x", scopes=["llm-all"])
    failing = _Unwritten(database)
    here = Tokens(failing, clock)
    await here.load()
    elsewhere = await again(database, clock)
    failing.meanwhile.append(lambda: elsewhere.set_limits(token.id, noted, requests_per_minute=7))
    failing.meanwhile.append(lambda: here.read_again([token.id]))

    with pytest.raises(Unavailable):
        await here.revoke(token.id)

    assert here.authenticate(secret).requests_per_minute == 7


async def test_a_token_that_is_revoked_elsewhere_before_its_issue_ends_stays_revoked(
    account: str, database: SqliteDatabase, clock: FixedClock
) -> None:
    """On Postgres an issue waits until all replicas have heard of it, and they may act on it."""
    late = _AnswerLate(database)
    here, elsewhere = Tokens(late, clock), Tokens(database, clock)

    async def revoke_elsewhere() -> None:
        await elsewhere.load()
        (token,) = elsewhere.list()
        await elsewhere.revoke(token.id)
        await here.read_again([token.id])

    late.after.append(revoke_elsewhere)
    _, secret = await here.issue(account, name="x", scopes=["llm-all"])

    with pytest.raises(AuthenticationFailed):
        here.authenticate(secret)

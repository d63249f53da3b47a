from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.support.clock import FixedClock

from tollway.accounts import Accounts
from tollway.database.base import Row, Statement
from tollway.database.sqlite import SqliteDatabase
from tollway.errors import AuthenticationFailed, InvalidRequest, NotFound, Unavailable
from tollway.tokens import Tokens, new_secret


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
    """The database, where something happens before what was read arrives."""

    def __init__(self, database: SqliteDatabase) -> None:
        self._database = database
        self.meanwhile: list[Callable[[], Awaitable[object]]] = []

    async def fetch(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        rows = await self._database.fetch(sql, parameters)
        for one in self.meanwhile:
            await one()
        return rows

    async def execute(self, *statements: Statement) -> int:
        return await self._database.execute(*statements)


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

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.support.clock import FixedClock
from tests.support.sqlite import migrated
from tests.unit.gateway.parts import a_caller

from tollway.accounts import Accounts
from tollway.database.sqlite import SqliteDatabase
from tollway.errors import AuthenticationFailed, PermissionDenied, RateLimited, RateWhy
from tollway.gateway.authenticate import Authenticator, require_active_account, require_scope
from tollway.rates.memory import MemoryRateLimiter
from tollway.tokens import Tokens

FAILURES_PER_MINUTE = 10


class Gatehouse:
    def __init__(self, database: SqliteDatabase) -> None:
        self.clock = FixedClock()
        self.accounts = Accounts(database, self.clock)
        self.tokens = Tokens(database, self.clock)
        self.limiter = MemoryRateLimiter(self.clock)
        self.authenticator = Authenticator(
            self.tokens, self.accounts, self.limiter, FAILURES_PER_MINUTE, self.clock
        )


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[Gatehouse]:
    database = SqliteDatabase(migrated(tmp_path / "tollway.db"))
    database.open()
    yield Gatehouse(database)
    await database.close()


@pytest.fixture
async def secret(house: Gatehouse) -> str:
    account = await house.accounts.create("acme", chain_head=lambda _: b"\0" * 32)
    _, secret = await house.tokens.issue(account.id, name="t", scopes=["llm-all"])
    return secret


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER  "])
async def test_a_bearer_token_is_its_caller(house: Gatehouse, secret: str, scheme: str) -> None:
    caller = await house.authenticator.authenticate((scheme + secret).encode(), "1.2.3.4")
    assert caller.account.name == "acme"
    assert caller.token.name == "t"


@pytest.mark.parametrize(
    "header", [None, b"", b"Bearer", b"Bearer ", b"Basic dTpw", b"tw_x", b"Bearer tw_x", b"\xff"]
)
async def test_anything_else_is_refused_without_an_echo(
    house: Gatehouse, header: bytes | None
) -> None:
    with pytest.raises(AuthenticationFailed) as refused:
        await house.authenticator.authenticate(header, "1.2.3.4")
    assert refused.value.code == "invalid_api_key"
    assert "tw_x" not in refused.value.message


async def test_guessing_is_slowed_by_address_and_a_valid_token_is_not(
    house: Gatehouse, secret: str
) -> None:
    for _ in range(FAILURES_PER_MINUTE):
        with pytest.raises(AuthenticationFailed):
            await house.authenticator.authenticate(b"Bearer tw_x", "1.2.3.4")
    with pytest.raises(RateLimited) as refused:
        await house.authenticator.authenticate(b"Bearer tw_x", "1.2.3.4")
    assert refused.value.why == RateWhy("failed_authentications_per_minute", 10, 60.0)

    with pytest.raises(AuthenticationFailed):
        await house.authenticator.authenticate(b"Bearer tw_x", "5.6.7.8")
    await house.authenticator.authenticate(b"Bearer " + secret.encode(), "1.2.3.4")
    house.clock.advance(60.001)
    with pytest.raises(AuthenticationFailed):
        await house.authenticator.authenticate(b"Bearer tw_x", "1.2.3.4")


def test_a_token_without_the_scope_is_told_which() -> None:
    caller = a_caller(scopes=frozenset({"account"}))
    require_scope(caller, "account")
    with pytest.raises(PermissionDenied, match="llm-all") as refused:
        require_scope(caller, "llm-all")
    assert refused.value.code == "insufficient_scope"


async def test_a_frozen_account_is_refused(house: Gatehouse, secret: str) -> None:
    header = b"Bearer " + secret.encode()
    require_active_account(await house.authenticator.authenticate(header, "a"))
    await house.accounts.freeze("acme")
    with pytest.raises(PermissionDenied) as refused:
        require_active_account(await house.authenticator.authenticate(header, "a"))
    assert refused.value.code == "account_frozen"
    await house.accounts.unfreeze("acme")
    require_active_account(await house.authenticator.authenticate(header, "a"))


async def test_who_was_found_is_recalled_until_anything_changes(
    house: Gatehouse, secret: str
) -> None:
    header = b"Bearer " + secret.encode()
    assert house.authenticator.cached_caller(header) is None
    caller = await house.authenticator.authenticate(header, "a")
    assert house.authenticator.cached_caller(header) is caller

    await house.accounts.freeze("acme")
    assert house.authenticator.cached_caller(header) is None
    frozen = await house.authenticator.authenticate(header, "a")
    assert house.authenticator.cached_caller(header) is frozen
    assert frozen.account.status == "frozen"

    await house.tokens.revoke(frozen.token.id)
    assert house.authenticator.cached_caller(header) is None


async def test_a_token_that_expires_is_not_recalled(house: Gatehouse) -> None:
    account = await house.accounts.create("acme", chain_head=lambda _: b"\0" * 32)
    _, secret = await house.tokens.issue(
        account.id, name="t", scopes=["llm-all"], expires_in_seconds=60
    )
    header = b"Bearer " + secret.encode()
    caller = await house.authenticator.authenticate(header, "a")
    house.clock.advance(59)
    assert house.authenticator.cached_caller(header) is caller
    house.clock.advance(1)
    assert house.authenticator.cached_caller(header) is None


async def test_what_was_refused_is_not_recalled(house: Gatehouse) -> None:
    with pytest.raises(AuthenticationFailed):
        await house.authenticator.authenticate(b"Bearer tw_x", "a")
    assert house.authenticator.cached_caller(b"Bearer tw_x") is None

"""Accounts: who pays. Their credits are the ledger's; here is what each is called and may do.

All accounts are in memory: a request looks its own up without a query. Every change is on disk
before it takes effect, except a freeze, which refuses at once.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Literal

import msgspec

from tollway.clock import Clock, new_id
from tollway.database.base import Database, Row, Statement
from tollway.errors import NotFound, Refused

NAME_CHARACTERS_MAX = 100


class Account(msgspec.Struct, frozen=True):
    """The two limits override the installation's; None leaves it."""

    id: str
    name: str
    status: Literal["active", "frozen"]
    requests_per_minute: int | None
    concurrent_requests: int | None
    created_at: float


class Accounts:
    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._by_id: dict[str, Account] = {}
        # The dict's own method: it is called in every request.
        self.get: Callable[[str], Account] = self._by_id.__getitem__
        self._by_name: dict[str, Account] = {}
        # One change after the other: each is made of what is known, and known when it is on disk.
        self._changing = asyncio.Lock()

    async def load(self) -> None:
        for row in await self._database.fetch(_ACCOUNTS + " ORDER BY id"):
            self._remember(_account(row))

    async def read_again(self, account_ids: Iterable[str]) -> None:
        """What another process has changed. What has not changed stays the very same object."""
        for account_id in account_ids:
            async with self._changing:
                rows = await self._database.fetch(_ACCOUNTS + " WHERE id = ?", (account_id,))
                for account in map(_account, rows):
                    before = self._by_id.get(account_id)
                    if account == before:
                        continue
                    if before is not None and before.name != account.name:
                        del self._by_name[before.name]
                    self._remember(account)

    def named(self, name: str) -> Account:
        """By name, or by id. Raises `NotFound`."""
        account = self._by_name.get(name) or self._by_id.get(name)
        if account is None:
            raise NotFound(f"There is no account {name!r:.120}. `tollway account list` shows them.")
        return account

    def list(self) -> list[Account]:
        return list(self._by_id.values())

    async def create(
        self,
        name: str,
        *,
        chain_head: Callable[[str], bytes],
        write: Callable[[Account, Statement], Awaitable[object]] | None = None,
    ) -> Account:
        """`chain_head(id)` is where the ledger begins the account's chain of entries. `write`
        puts the account's row on disk, in one transaction with the entry of its first credits where
        it has any. Raises `Refused` for a name that is taken."""
        if not 1 <= len(name) <= NAME_CHARACTERS_MAX:
            raise Refused(
                f"An account's name has 1 to {NAME_CHARACTERS_MAX} printable characters; "
                f"this one has {len(name)}."
            )
        if not name.isprintable():  # such as the \r of a list that was made on Windows
            raise Refused(
                f"An account's name has printable characters alone, and {name!r} has others. "
                "Leave them out."
            )
        if name in self._by_name or name in self._by_id:
            raise Refused(f"There is an account {name!r} already. Choose another name.")
        now = self._clock.now()
        account = Account(new_id("acc", now), name, "active", None, None, now)
        row: Statement = (
            "INSERT INTO accounts (id, name, status, chain_head, created_at)"
            " VALUES (?, ?, ?, ?, ?)",
            (account.id, name, account.status, chain_head(account.id), int(now * 1000)),
        )
        if write is None:
            await self._database.execute(row)
        else:
            await write(account, row)
        self._remember(account)
        return account

    async def freeze(self, name: str, *audit: Statement) -> Account:
        """Its next request is refused; those in flight end as they would. `audit` is written with
        it."""
        status = self.named(name).status
        self._remember_as(name, status="frozen")
        try:
            async with self._changing:
                frozen = self._remember_as(name, status="frozen")
                await self._store_status(frozen, audit)
                return frozen
        except BaseException:
            # Told as refused, and a restart would find it active: it is.
            self._remember_as(name, status=status)
            raise

    async def unfreeze(self, name: str, *audit: Statement) -> Account:
        async with self._changing:
            active = msgspec.structs.replace(self.named(name), status="active")
            await self._store_status(active, audit)
            return self._remember_as(name, status="active")

    async def set_limits(
        self,
        name: str,
        *audit: Statement,
        requests_per_minute: int | Literal["default"] | None = None,
        concurrent_requests: int | Literal["default"] | None = None,
    ) -> Account:
        """None leaves a limit as it is, "default" makes it the installation's again. `audit` is
        written with it."""
        changes: dict[str, int | None] = {}
        if requests_per_minute is not None:
            changes["requests_per_minute"] = _or_none(requests_per_minute)
        if concurrent_requests is not None:
            changes["concurrent_requests"] = _or_none(concurrent_requests)
        async with self._changing:
            account = self.named(name)
            # What is not named is not written: another replica may have changed it just now.
            await self._database.execute(
                *audit, *((_SET[limit], (value, account.id)) for limit, value in changes.items())
            )
            return self._remember_as(name, **changes)

    async def _store_status(self, account: Account, audit: tuple[Statement, ...]) -> None:
        await self._database.execute(
            *audit, ("UPDATE accounts SET status = ? WHERE id = ?", (account.status, account.id))
        )

    def _remember_as(self, name: str, **changes: Any) -> Account:
        """What else is known of it stays: it may have been frozen meanwhile."""
        changed = msgspec.structs.replace(self.named(name), **changes)
        self._remember(changed)
        return changed

    def _remember(self, account: Account) -> None:
        self._by_id[account.id] = account
        self._by_name[account.name] = account


_ACCOUNTS = (
    "SELECT id, name, status, requests_per_minute, concurrent_requests, created_at FROM accounts"
)

_SET = {
    "requests_per_minute": "UPDATE accounts SET requests_per_minute = ? WHERE id = ?",
    "concurrent_requests": "UPDATE accounts SET concurrent_requests = ? WHERE id = ?",
}


def _account(row: Row) -> Account:
    *values, created_at = row
    return Account(*values, created_at=created_at / 1000)


def _or_none(limit: int | Literal["default"]) -> int | None:
    return None if limit == "default" else limit

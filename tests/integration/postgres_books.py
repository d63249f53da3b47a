"""A `PostgresLedger` over a database of its own, with what a test needs to fill it, as
`tests.unit.ledger.books.Books` has it for SQLite."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from tests.support.clock import FixedClock
from tests.unit.ledger.books import INPUT_PRICE, MODEL, OUTPUT_PRICE, PRICE, AnyBooks

from tollway.database.instance import Instance
from tollway.database.postgres import PostgresDatabase
from tollway.ledger.postgres.leases import LeasePolicy
from tollway.ledger.postgres.ledger import PostgresLedger
from tollway.ledger.postgres.verify import verify
from tollway.ledger.verify import Violation

NO_LEASES = LeasePolicy(busy_holds=0)
EAGER_LEASES = LeasePolicy(busy_holds=1)


class PostgresBooks(AnyBooks[PostgresDatabase, PostgresLedger]):
    """One replica. `crash` leaves the process's memory behind, not the database and the
    journal."""

    def __init__(
        self,
        url: str,
        data_dir: Path,
        *,
        policy: LeasePolicy = NO_LEASES,
        first_request: int = 0,
        clock: FixedClock | None = None,
        lease_seconds: float = 15.0,
        poll_seconds: float = 0.02,
    ) -> None:
        super().__init__(data_dir, first_request=first_request, clock=clock)
        self.url = url
        self._policy = policy
        self._lease_seconds = lease_seconds
        self._poll_seconds = poll_seconds

    async def open(self) -> "PostgresBooks":
        self.data_dir.mkdir(exist_ok=True)
        self.database = PostgresDatabase(self.url)
        await self.database.open()
        self.instance = Instance(
            self.database,
            self.clock,
            self.data_dir,
            poll_seconds=self._poll_seconds,
            lease_seconds=self._lease_seconds,
        )
        self.ledger = PostgresLedger(
            self.database,
            self.instance,
            self.clock,
            self._refusal,
            self.data_dir,
            policy=self._policy,
            retry_seconds=0.02,
        )
        self.recovered = await self.ledger.open()
        await self.ledger.load()
        await self.instance.start()
        await self.database.execute(
            (
                "INSERT INTO prices VALUES (?, ?, ?, ?, 0) ON CONFLICT DO NOTHING",
                (PRICE, MODEL, INPUT_PRICE, OUTPUT_PRICE),
            )
        )
        return self

    async def close(self) -> None:
        await self.ledger.close()
        await self.database.close()

    async def reopen(self) -> None:
        await self.close()
        await self.open()

    async def crash(self) -> None:
        await self.die()
        await self.open()

    async def die(self) -> None:
        """As kill -9: nothing is given back, and nothing that was queued is written."""
        await self.ledger.abandon()
        await self.database.close()

    async def account(self, credits: int = 0, name: str = "acc_1") -> str:
        """With a token, which requests that name none have."""
        await super().account(credits, name)
        await self.token(name, None, self.token_of(name))
        return name

    def token_of(self, account_id: str) -> str:
        return f"token of {account_id}"

    async def violations(self) -> list[Violation]:
        async with self.database.snapshot() as connection:
            return await verify(connection)


async def until(true: Callable[[], bool], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110 (what it waits for is not ours to tell)
            await asyncio.sleep(0.01)


async def until_nothing(books: PostgresBooks, rows: str) -> None:
    async with asyncio.timeout(10):
        while (await books.database.fetch(f"SELECT count(*) FROM {rows}"))[0][0]:  # noqa: ASYNC110, S608
            await asyncio.sleep(0.05)

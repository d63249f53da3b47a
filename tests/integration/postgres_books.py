"""A `PostgresLedger` over a database of its own, with what a test needs to fill it, as
`tests.unit.ledger.books.Books` has it for SQLite."""

from pathlib import Path
from typing import Any

from tests.support.clock import FixedClock
from tests.unit.ledger.books import INPUT_PRICE, MODEL, OUTPUT_PRICE, PRICE, an_outcome

from tollway.database.instance import Instance
from tollway.database.postgres import PostgresDatabase
from tollway.errors import PermissionDenied, RequestError
from tollway.ledger.base import Hold, HoldAsk, Recovered, Settlement, genesis
from tollway.ledger.postgres.leases import LeasePolicy
from tollway.ledger.postgres.ledger import PostgresLedger
from tollway.ledger.postgres.verify import verify
from tollway.ledger.verify import Violation

NO_LEASES = LeasePolicy(busy_holds=0)
EAGER_LEASES = LeasePolicy(busy_holds=1)


class PostgresBooks:
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
        self.url = url
        self.data_dir = data_dir
        self.clock = FixedClock() if clock is None else clock
        self.frozen: set[str] = set()
        self.recovered: list[Recovered] = []
        self._policy = policy
        self._requests = first_request
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
        await self.database.execute(
            (
                "INSERT INTO accounts (id, name, chain_head, created_at) VALUES (?, ?, ?, 0)",
                (name, name, genesis(name)),
            )
        )
        await self.token(name, None, f"token of {name}")
        if credits:
            await self.top_up(name, credits, ref=f"first:{name}")
        return name

    async def top_up(self, account_id: str, credits: int, ref: str) -> bool:
        _, added = await self.ledger.add(
            account_id, credits, kind="top_up", ref=ref, description="prepaid"
        )
        return added

    async def token(self, account_id: str, spend_cap: int | None, name: str) -> str:
        await self.database.execute(
            (
                "INSERT INTO tokens (id, account_id, name, digest, scopes, spend_cap, created_at)"
                " VALUES (?, ?, ?, ?, '[]', ?, 0)",
                (name, account_id, name, name.encode(), spend_cap),
            )
        )
        return name

    def ask(
        self,
        account_id: str,
        amount: int,
        *,
        at_least: int | None = None,
        token_id: str | None = None,
        spend_cap: int | None = None,
    ) -> HoldAsk:
        self._requests += 1
        return HoldAsk(
            f"req_{self._requests:04d}",
            account_id,
            f"token of {account_id}" if token_id is None else token_id,
            PRICE,
            amount,
            amount if at_least is None else at_least,
            spend_cap,
            self.clock.now(),
        )

    async def hold(self, account_id: str, amount: int, **options: Any) -> Hold:
        return await self.ledger.hold(self.ask(account_id, amount, **options))

    async def charge(self, account_id: str, amount: int, cost: int, **options: Any) -> Settlement:
        hold = await self.hold(account_id, amount, **options)
        return await self.ledger.settle(hold, an_outcome(cost))

    async def balance(self, account_id: str) -> int:
        rows = await self.database.fetch("SELECT balance FROM accounts WHERE id = ?", (account_id,))
        return rows[0][0]

    async def violations(self) -> list[Violation]:
        async with self.database.snapshot() as connection:
            return await verify(connection)

    def _refusal(self, account_id: str, token_id: str) -> RequestError | None:
        if account_id in self.frozen:
            return PermissionDenied("The account is frozen.", code="account_frozen")
        return None

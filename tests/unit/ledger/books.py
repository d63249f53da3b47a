"""A ledger with a price, and what a test needs to fill it: over SQLite in a temporary directory
(`Books`), or over another database (`AnyBooks`)."""

import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, Generic, TypeVar

from tests.support.clock import FixedClock
from tests.support.sqlite import migrated

from tollway.database.base import Database
from tollway.database.sqlite import SqliteDatabase, connect
from tollway.errors import PermissionDenied, RequestError
from tollway.ledger.base import (
    Attempt,
    Checkpoint,
    Hold,
    HoldAsk,
    Ledger,
    Outcome,
    Recovered,
    Settlement,
    genesis,
)
from tollway.ledger.sqlite import SqliteLedger
from tollway.ledger.verify import Violation, verify

MODEL = "acme/m1"
PRICE = "price_1"
TOKEN = "tok_0"
INPUT_PRICE = 1_000_000  # credits per million: one a token, so that a test's sums can be read
OUTPUT_PRICE = 2_000_000


D = TypeVar("D", bound=Database)
L = TypeVar("L", bound=Ledger)


class AnyBooks(Generic[D, L]):
    """A ledger over a database, and what a test needs to fill it, whichever they are."""

    database: D
    ledger: L

    def __init__(
        self, data_dir: Path, *, first_request: int = 0, clock: FixedClock | None = None
    ) -> None:
        self.data_dir = data_dir
        self.clock = FixedClock() if clock is None else clock
        self.frozen: set[str] = set()
        self.recovered: list[Recovered] = []
        self._requests = first_request

    def token_of(self, account_id: str) -> str:
        """Of requests that name none."""
        return TOKEN

    async def account(self, credits: int = 0, name: str = "acc_1") -> str:
        await self.database.execute(
            (
                "INSERT INTO accounts (id, name, chain_head, created_at) VALUES (?, ?, ?, 0)",
                (name, name, genesis(name)),
            )
        )
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
            self.token_of(account_id) if token_id is None else token_id,
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

    def _refusal(self, account_id: str, token_id: str) -> RequestError | None:
        if account_id in self.frozen:
            return PermissionDenied("The account is frozen.", code="account_frozen")
        return None


class Books(AnyBooks[SqliteDatabase, SqliteLedger]):
    """A `SqliteLedger` and its file. `crash` leaves the process's memory behind, not the disk."""

    def __init__(
        self,
        data_dir: Path,
        database: Callable[[Path], SqliteDatabase] = SqliteDatabase,
        *,
        first_request: int = 0,
    ) -> None:
        super().__init__(data_dir, first_request=first_request)
        self._new_database = database
        self._crashes = 0
        self._name = data_dir.name

    async def open(self, *, with_price: bool = True) -> "Books":
        self.database = self._new_database(migrated(self.path))
        self.database.open()
        self.ledger = SqliteLedger(self.database, self.clock, self._refusal)
        self.recovered = await self.ledger.recover()
        if with_price:
            price = (PRICE, MODEL, INPUT_PRICE, OUTPUT_PRICE)
            await self.database.execute(
                ("INSERT OR IGNORE INTO prices VALUES (?, ?, ?, ?, 0, NULL, NULL)", price)
            )
        return self

    async def close(self) -> None:
        await self.database.close()

    async def reopen(self) -> None:
        await self.close()
        await self.open()

    async def crash(self, meanwhile: Callable[[], None] | None = None) -> None:
        """As after kill -9: what is on disk at this moment, and nothing of what is in memory.
        `meanwhile` is what happens before the next start."""
        before = self.data_dir
        self._crashes += 1
        self.data_dir = before.with_name(f"{self._name}-{self._crashes}")
        shutil.copytree(before, self.data_dir)
        if meanwhile is not None:
            meanwhile()
        await self.close()
        shutil.rmtree(before)
        await self.open()

    @property
    def path(self) -> Path:
        return self.data_dir / "tollway.db"

    def verify(self) -> list[Violation]:
        with closing(connect(self.path)) as connection:
            return verify(connection, self.ledger.open_holds())

    async def violations(self) -> list[Violation]:
        return self.verify()


async def a_history(books: AnyBooks[Any, Any]) -> str:
    """Two accounts and one without an entry; a charge with a shortfall, one of 0, a refund, and a
    charge to a token with a cap: that token."""
    await books.account(1000, "acc_1")
    await books.account(500, "acc_2")
    await books.account(0, "acc_3")
    token = await books.token("acc_2", 300, "tok_1")
    await books.charge("acc_1", 100, cost=41)  # req_0001
    await books.charge("acc_1", 100, cost=130)  # req_0002
    await books.charge("acc_1", 100, cost=0)  # req_0003
    await books.charge("acc_2", 50, cost=20, token_id=token, spend_cap=300)  # req_0004
    await books.ledger.add("acc_1", 40, kind="refund", ref="req_0001", description="sorry")
    await books.top_up("acc_1", 5, ref="second")
    return token


def an_outcome(cost: int, *, status: Any = "completed", client_id: str | None = None) -> Outcome:
    """One that costs as many credits: an odd one is for input, the rest for output tokens."""
    return Outcome(
        status=status,
        model=MODEL,
        input_tokens=cost % 2,
        output_tokens=cost // 2,
        source="upstream",
        cost=cost,
        attempts=(Attempt("gpu-1", 200),),
        upstream="gpu-1",
        upstream_id="chatcmpl-7",
        client_request_id=client_id,
        first_token_seconds=0.25,
        total_seconds=1.5,
    )


def a_checkpoint(hold: Hold, cost: int, now: float) -> Checkpoint:
    return Checkpoint(hold, MODEL, "gpu-1", cost % 2, cost // 2, None, now)

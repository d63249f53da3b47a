"""Operations on a real SQLite file, with one model and nobody's account yet."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.support.clock import FixedClock
from tests.support.sqlite import migrated

from tollway.accounts import Accounts
from tollway.api.admin.operations import Operations
from tollway.catalogue import Catalogue, ModelOffer, Serving
from tollway.database.sqlite import SqliteDatabase
from tollway.ledger.base import HoldAsk, Outcome, genesis
from tollway.ledger.signing import SigningKey
from tollway.ledger.sqlite import SqliteLedger
from tollway.ledger.verify import verify
from tollway.tokens import Tokens

STARTING_CREDITS = 1000
OUTPUT_TOKENS_A_CREDIT = 250
TOKEN = "tok_1"


@dataclass(frozen=True)
class Office:
    """The operations, and what they work on."""

    operations: Operations
    accounts: Accounts
    tokens: Tokens
    ledger: SqliteLedger
    catalogue: Catalogue
    database: SqliteDatabase

    async def do(self, command: str, **arguments: object) -> dict[str, object]:
        return await self.operations.execute(command, arguments, actor="alice")

    async def charged_request(
        self,
        account_id: str,
        credits: int,
        number: int = 1,
        token_id: str = TOKEN,
        spend_cap: int | None = None,
    ) -> str:
        """The id of a request that was charged so much."""
        request_id = f"req_{number:032x}"
        hold = await self.ledger.hold(
            HoldAsk(
                request_id,
                account_id,
                token_id,
                self.catalogue.find("m1", None).price.id,
                amount_max=credits,
                amount_min=credits,
                token_spend_cap=spend_cap,
                now=1.0,
            )
        )
        await self.ledger.settle(
            hold,
            Outcome(
                "completed", "m1", 0, credits * OUTPUT_TOKENS_A_CREDIT, "upstream", credits, ()
            ),
        )
        return request_id

    async def audit(self) -> list[tuple[object, ...]]:
        """Without how the accounts and tokens of the test came to be."""
        return await self.database.fetch(
            "SELECT actor, action, subject, reason FROM audit"
            " WHERE action NOT IN ('account create', 'token issue') ORDER BY action, reason"
        )

    async def audit_of(self, action: str) -> list[tuple[object, ...]]:
        return await self.database.fetch(
            "SELECT actor, subject, details FROM audit WHERE action = ? ORDER BY id", (action,)
        )


async def open_office(path: Path) -> Office:
    clock = FixedClock()
    database = SqliteDatabase(migrated(path))
    database.open()
    accounts, tokens = Accounts(database, clock), Tokens(database, clock)
    await accounts.load()
    await tokens.load()
    ledger = SqliteLedger(database, clock, lambda account_id, token_id: None)
    await ledger.load()
    offer = ModelOffer(
        "m1",
        "budget",
        700,
        1_000_000 // OUTPUT_TOKENS_A_CREDIT,
        4096,
        4096,
        4096,
        None,
        False,
        (Serving("u", "m1"),),
    )
    catalogue = await Catalogue.load([offer], database, clock)
    operations = Operations(
        accounts=accounts,
        tokens=tokens,
        ledger=ledger,
        catalogue=catalogue,
        database=database,
        verify=lambda: database.read(lambda connection: verify(connection, ledger.open_holds())),
        clock=clock,
        genesis=genesis,
        signing_key=SigningKey.load(path.parent),
        starting_credits=STARTING_CREDITS,
    )
    return Office(operations, accounts, tokens, ledger, catalogue, database)


@pytest.fixture
async def office(tmp_path: Path) -> AsyncIterator[Office]:
    office = await open_office(tmp_path / "tollway.db")
    yield office
    await office.database.close()

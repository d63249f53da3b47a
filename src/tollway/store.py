"""Opens what is kept: a database, and the modules that own its tables.

For serving, SQLite's data directory is this process's alone, and replicas on Postgres start one
after the other. Commands open SQLite as a server does, and Postgres beside the servers.
"""

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tollway.accounts import Accounts
from tollway.api.admin.control import WORKERS
from tollway.api.admin.operations import Operations
from tollway.catalogue import Catalogue
from tollway.clock import Clock, SystemClock, new_id
from tollway.database.base import Database
from tollway.database.data_directory import (
    DATABASE_FILE,
    own_data_directory,
    require_not_moved,
)
from tollway.database.sqlite import SqliteDatabase
from tollway.errors import (
    AuthenticationFailed,
    PermissionDenied,
    Refused,
    RequestError,
    StartError,
)
from tollway.ledger.base import Ledger, Liveness, genesis
from tollway.ledger.signing import SigningKey, new_key
from tollway.ledger.sqlite import SqliteLedger
from tollway.ledger.verify import Violation, verify
from tollway.live import offers_of
from tollway.process import configure_logging
from tollway.settings import Settings
from tollway.tokens import Tokens

if TYPE_CHECKING:
    from tollway.database.instance import Change, Instance
    from tollway.database.postgres import PostgresDatabase
    from tollway.ledger.postgres.ledger import PostgresLedger

START_LOCK = 7_405_602

log = logging.getLogger("tollway")


@dataclass(frozen=True, slots=True)
class Store:
    """What is kept: the database and the modules that own its tables."""

    database: Database
    accounts: Accounts
    tokens: Tokens
    ledger: Ledger
    catalogue: Catalogue
    operations: Operations
    clock: Clock
    signing_key: SigningKey
    fault: Callable[[], str | None]
    new_secret: str | None
    """The first token's, where this start made it."""


def is_new(settings: Settings) -> bool:
    """Whether there is no Tollway yet where the settings say. On Postgres somebody else makes the
    tables, or nothing can be opened."""
    server = settings.server
    return not server.database.scheme and not (server.data_dir / DATABASE_FILE).exists()


@asynccontextmanager
async def open_operations(
    settings: Settings, *, may_create: bool = False
) -> AsyncGenerator[Operations]:
    """For commands while no server runs. Raises `StartError` where the data directory is in use,
    and `Refused` where there is none and `may_create` is not said: it is then a typing error."""
    configure_logging()
    data_dir = settings.server.data_dir
    if is_new(settings):
        require_not_moved(data_dir)
        if not may_create:
            raise Refused(
                f"There is no Tollway in {data_dir}. Check --data-dir, or start with `tollway "
                "serve`."
            )
    async with open_store(settings, for_serving=False) as store:
        yield store.operations


@asynccontextmanager
async def open_store(
    settings: Settings,
    on_commit: Callable[[int, float], None] | None = None,
    *,
    for_serving: bool = True,
) -> AsyncGenerator[Store]:
    """Not for serving, nothing is made that was not there, and Postgres is opened beside the
    replicas that serve from it."""
    if not settings.server.database.scheme:
        opened = _opened_sqlite(settings, on_commit, for_serving)
    elif for_serving:
        opened = _replica_on_postgres(settings, on_commit)
    else:
        opened = _beside_replicas_on_postgres(settings, on_commit)
    async with opened as store:
        yield store


@asynccontextmanager
async def _opened_sqlite(
    settings: Settings, on_commit: Callable[[int, float], None] | None, for_serving: bool
) -> AsyncGenerator[Store]:
    clock = SystemClock()
    data_dir = settings.server.data_dir
    with own_data_directory(data_dir):
        signing_key = SigningKey.load(data_dir)
        database = SqliteDatabase(data_dir / DATABASE_FILE, on_commit=on_commit)
        database.open()
        try:
            accounts, tokens = Accounts(database, clock), Tokens(database, clock)
            await accounts.load()
            await tokens.load()
            ledger = SqliteLedger(database, clock, _liveness(accounts, tokens, clock))
            for recovered in await ledger.recover():
                log.warning("recovered after a crash: %s", recovered)

            async def verified() -> list[Violation]:
                holds = ledger.open_holds()
                return await database.read(lambda connection: verify(connection, holds))

            yield await _store(
                settings,
                clock,
                database,
                accounts,
                tokens,
                ledger,
                signing_key,
                verified,
                lambda: database.fault,
                for_serving=for_serving,
            )
        finally:
            await database.close()


@asynccontextmanager
async def _replica_on_postgres(
    settings: Settings, on_commit: Callable[[int, float], None] | None
) -> AsyncGenerator[Store]:
    data_dir = settings.server.data_dir
    async with AsyncExitStack() as stack:
        stack.enter_context(own_data_directory(data_dir))
        parts = await stack.enter_async_context(_parts_on_postgres(settings, on_commit))
        # One replica after the other: the first makes what the others then find.
        async with parts.database.exclusive(START_LOCK):
            for recovered in await parts.ledger.open():
                log.warning("recovered after a crash: %s", recovered)
            stack.push_async_callback(parts.ledger.close)
            # Not before this one's own are written: where both have some, each start would be
            # refused until the other was made.
            require_no_charges_left(data_dir, workers=0)
            store = await parts.store(settings, for_serving=True)
        await parts.instance.start()
        yield store


@asynccontextmanager
async def _beside_replicas_on_postgres(
    settings: Settings, on_commit: Callable[[int, float], None] | None
) -> AsyncGenerator[Store]:
    async with AsyncExitStack() as stack:
        parts = await stack.enter_async_context(_parts_on_postgres(settings, on_commit))
        parts.ledger.open_for_commands()
        stack.push_async_callback(parts.ledger.close)
        yield await parts.store(settings, for_serving=False)


@dataclass(frozen=True, slots=True)
class _PostgresParts:
    """Of a store, before its ledger is open."""

    clock: Clock
    database: "PostgresDatabase"
    accounts: Accounts
    tokens: Tokens
    instance: "Instance"
    ledger: "PostgresLedger"

    async def store(self, settings: Settings, *, for_serving: bool) -> Store:
        from tollway.ledger.postgres.verify import verify_postgres

        await self.accounts.load()
        await self.tokens.load()
        await self.ledger.load()
        return await _store(
            settings,
            self.clock,
            self.database,
            self.accounts,
            self.tokens,
            self.ledger,
            await _signing_key(self.database, self.clock),
            lambda: verify_postgres(self.database),
            lambda: self.ledger.fault,
            for_serving=for_serving,
        )


@asynccontextmanager
async def _parts_on_postgres(
    settings: Settings, on_commit: Callable[[int, float], None] | None
) -> AsyncGenerator[_PostgresParts]:
    from tollway.database.instance import Instance
    from tollway.ledger.postgres.ledger import PostgresLedger

    clock = SystemClock()
    data_dir = settings.server.data_dir
    database = await open_postgres(settings)
    try:
        accounts, tokens = Accounts(database, clock), Tokens(database, clock)
        instance = Instance(database, clock, data_dir)

        async def read_again(changes: "Collection[Change]") -> None:
            await accounts.read_again(c.subject for c in changes if c.kind == "account")
            await tokens.read_again(c.subject for c in changes if c.kind == "token")

        instance.on_changes = read_again
        refusal = _liveness(accounts, tokens, clock)
        ledger = PostgresLedger(database, instance, clock, refusal, data_dir, on_commit=on_commit)
        yield _PostgresParts(clock, database, accounts, tokens, instance, ledger)
    finally:
        await database.close()


def require_no_charges_left(data_dir: Path, *, workers: int) -> None:
    """Raises `StartError` where one of more workers than these left charges in its journal: it
    alone, started again, puts them into the database."""
    for journal in sorted((data_dir / WORKERS).glob("*/journal")):
        if not journal.parent.name.isdecimal():  # no worker's: somebody's copy of one
            continue
        number = int(journal.parent.name)
        if number >= workers and journal.stat().st_size:
            raise StartError(
                f"{journal} has charges that are not yet in the database, of a worker that would "
                f"not run. Start with --workers {max(2, number + 1)} once."
            )


async def open_postgres(settings: Settings) -> "PostgresDatabase":
    """Raises `StartError`, also where the role lacks what it needs to serve."""
    from tollway.database.postgres import PostgresDatabase
    from tollway.database.rights import complaints, shown

    database = PostgresDatabase(settings.server.database.reveal())
    await database.open()
    lacks, _ = await complaints(database)
    if lacks:
        await database.close()
        raise StartError(f"{next(shown(lacks, []))}.")
    return database


async def _store(
    settings: Settings,
    clock: Clock,
    database: Database,
    accounts: Accounts,
    tokens: Tokens,
    ledger: Ledger,
    signing_key: SigningKey,
    verified: Callable[[], Awaitable[Sequence[Violation]]],
    fault: Callable[[], str | None],
    *,
    for_serving: bool,
) -> Store:
    catalogue = await Catalogue.load(offers_of(settings), database, clock)
    operations = Operations(
        accounts=accounts,
        tokens=tokens,
        ledger=ledger,
        catalogue=catalogue,
        database=database,
        verify=verified,
        clock=clock,
        genesis=genesis,
        signing_key=signing_key,
        starting_credits=settings.limits.starting_credits,
    )
    new_secret = await operations.ensure_default_account() if for_serving else None
    return Store(
        database,
        accounts,
        tokens,
        ledger,
        catalogue,
        operations,
        clock,
        signing_key,
        fault,
        new_secret,
    )


async def stored_signing_key(settings: Settings) -> SigningKey:
    """Postgres's, which all replicas sign with. Raises `StartError`."""
    from tollway.database.postgres import PostgresDatabase

    database = PostgresDatabase(settings.server.database.reveal())
    await database.open()
    try:
        return await _signing_key(database, SystemClock())
    finally:
        await database.close()


async def _signing_key(database: "PostgresDatabase", clock: Clock) -> SigningKey:
    """The same for all replicas, so it is where they all find it."""
    stored = "SELECT pem FROM signing_keys ORDER BY created_at, id LIMIT 1"
    rows = await database.fetch(stored)
    if not rows:
        pem = new_key().decode()
        now = clock.now()
        await database.execute(
            (
                "INSERT INTO signing_keys (id, pem, created_at) VALUES (?, ?, ?)",
                (new_id("key", now), pem, int(now * 1000)),
            )
        )
        rows = await database.fetch(stored)
    return SigningKey.of_pem(rows[0][0].encode(), f"in {database.name}")


def _liveness(accounts: Accounts, tokens: Tokens, clock: Clock) -> Liveness:
    def refusal(account_id: str, token_id: str) -> RequestError | None:
        token = tokens.get(token_id)
        if token is None or not token.is_live(clock.now()):
            return AuthenticationFailed(
                "This token was revoked while the request was on its way.", code="token_revoked"
            )
        if accounts.get(account_id).status != "active":
            return PermissionDenied(
                "This account was frozen while the request was on its way.", code="account_frozen"
            )
        return None

    return refusal

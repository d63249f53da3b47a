"""Postgres, which any number of replicas share: a pool for what is asked now and then, and
connections of their own for what never stops asking (the ledger's lanes, the ear for changes).

A connection that breaks is replaced at its next use. Reads are then tried again. Of a write nobody
knows whether it happened, so it raises `Unavailable`, and whoever may write twice tries again.

`execute` is for what changes rarely: accounts, tokens, prices. It returns when every replica has
heard of the change, as far as that comes soon; where something is refused from now on it waits for
every one that still has its lease.
"""
# asyncpg has no types; `Connection` below says what is used of it.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportArgumentType=false

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import lru_cache
from typing import Any, Protocol, cast
from urllib.parse import urlsplit

import asyncpg

from tollway.database.base import Row, Statement
from tollway.database.migrate import postgres_migrations, require_known
from tollway.errors import Refused, StartError, Unavailable

CHANNEL = "tollway"
CONNECT_SECONDS_MAX = 5.0
COMMAND_SECONDS_MAX = 10.0
LEASE_SECONDS = 15.0
SPREAD_SECONDS_MAX = 1.0
_SPREAD_LOOK_SECONDS = 0.01
_POOL_SIZE = 6

log = logging.getLogger("tollway.database")


class Connection(Protocol):
    """What is used of asyncpg's. Any: a row's values are whatever its columns hold."""

    async def execute(self, query: str, *args: Any, **options: Any) -> str: ...

    async def fetch(self, query: str, *args: Any) -> list[Row]: ...

    async def fetchrow(self, query: str, *args: Any) -> Row | None: ...

    async def fetchval(self, query: str, *args: Any) -> Any: ...

    def transaction(self, **options: Any) -> AbstractAsyncContextManager[None]: ...

    async def copy_records_to_table(self, name: str, /, **options: Any) -> str: ...

    async def add_listener(self, name: str, callback: Callable[..., None], /) -> None: ...

    def add_termination_listener(self, callback: Callable[..., None], /) -> None: ...

    def is_closed(self) -> bool: ...

    def terminate(self) -> None: ...

    async def close(self) -> None: ...


# Whatever the server's own settings are. A process that is stopped within a transaction must not
# keep its locks from the others.
_SESSION = {
    "application_name": "tollway",
    "default_transaction_isolation": "read committed",
    "synchronous_commit": "on",
    "idle_in_transaction_session_timeout": "5000",
    "client_encoding": "UTF8",
    "timezone": "UTC",
}

_UNREACHABLE: tuple[type[BaseException], ...] = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # of one whose connection broke while it asked
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.PostgresIOError,
    asyncpg.InternalServerError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.CannotConnectNowError,
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    asyncpg.LockNotAvailableError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
)


class PostgresDatabase:
    """Implements `Database`."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.name = database_name(url)
        self._pool: asyncpg.Pool | None = None

    async def open(self) -> None:
        """Raises `StartError` where it cannot be reached, or has another schema than this version
        needs."""
        try:
            self._pool = await asyncpg.create_pool(
                self._url,
                min_size=0,  # or asyncpg writes a traceback each time that it cannot keep one
                max_size=_POOL_SIZE,
                timeout=CONNECT_SECONDS_MAX,
                command_timeout=COMMAND_SECONDS_MAX,
                server_settings=_SESSION,
            )
            await self._check_schema(self._pool)
        except StartError:
            await self.close()
            raise
        except (*_UNREACHABLE, asyncpg.PostgresError, ValueError) as error:
            await self.close()
            raise StartError(
                f"The database {self.name} cannot be used: {reason(error)}. Check server.database."
            ) from None

    async def close(self) -> None:
        if self._pool is None:
            return
        try:
            async with asyncio.timeout(CONNECT_SECONDS_MAX):
                await self._pool.close()
        except (TimeoutError, *_UNREACHABLE):
            self._pool.terminate()
        self._pool = None

    async def connect(self, command_seconds: float | None = COMMAND_SECONDS_MAX) -> Connection:
        """A connection of one's own. Raises what `is_unreachable` knows."""
        connection = await asyncpg.connect(
            self._url,
            timeout=CONNECT_SECONDS_MAX,
            command_timeout=command_seconds,
            server_settings=_SESSION,
        )
        return cast(Connection, connection)

    async def fetch(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        try:
            return await self._fetch(sql, parameters)
        except BaseException as error:
            if not is_unreachable(error):
                raise
            log.info("asking the database again: %s", reason(error))
        await self.renew()
        with told_as_unavailable():
            return await self._fetch(sql, parameters)

    async def renew(self) -> None:
        """After a connection broke: the next one may have broken with it."""
        if self._pool is not None:
            await self._pool.expire_connections()

    async def _fetch(self, sql: str, parameters: Sequence[Any]) -> list[Row]:
        async with self._acquired() as connection:
            rows = await connection.fetch(dollars(sql), *parameters)
        return [tuple(row) for row in rows]

    async def execute(self, *statements: Statement) -> int:
        changed = 0
        async with self.transaction() as connection:
            for sql, parameters in statements:
                status = await connection.execute(dollars(sql), *parameters)
                changed = _rows_of(status)
            change = await connection.fetchrow(
                "SELECT txid, bool_or(refuses) FROM changes WHERE txid = txid_current() GROUP BY 1"
            )
        if change is not None:
            seconds = LEASE_SECONDS + SPREAD_SECONDS_MAX if change[1] else SPREAD_SECONDS_MAX
            await self._spread(change[0], seconds)
        return changed

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[Connection]:
        """Committed at its end. Raises `Unavailable` where it may have been or not, and `Refused`
        where a constraint forbids it."""
        try:
            with told_as_unavailable():
                async with self._acquired() as connection, connection.transaction():
                    yield connection
        except (
            asyncpg.IntegrityConstraintViolationError,
            asyncpg.RaiseError,
            asyncpg.DataError,
        ) as error:
            raise Refused(f"The database refused this: {reason(error)}.") from error

    @asynccontextmanager
    async def snapshot(self) -> AsyncGenerator[Connection]:
        """All that is read in it is as of one moment, however long it takes."""
        async with self._alone(isolation="repeatable_read", readonly=True) as connection:
            yield connection

    @asynccontextmanager
    async def long_transaction(self) -> AsyncGenerator[Connection]:
        """As `transaction`, over a connection of its own, however long its statements take."""
        async with self._alone() as connection:
            yield connection

    @asynccontextmanager
    async def _alone(self, **options: Any) -> AsyncGenerator[Connection]:
        with told_as_unavailable():
            connection = await self.connect(command_seconds=None)
            try:
                async with connection.transaction(**options):
                    yield connection
            finally:
                await connection.close()

    @asynccontextmanager
    async def exclusive(self, number: int) -> AsyncGenerator[None]:
        """One process at a time is within, of all that use this database."""
        with told_as_unavailable():
            connection = await self.connect()
        try:
            with told_as_unavailable():
                await connection.execute("SELECT pg_advisory_lock($1)", number, timeout=60)
            yield
        finally:
            with contextlib.suppress(*_UNREACHABLE):
                await connection.close()

    @asynccontextmanager
    async def _acquired(self) -> AsyncGenerator[Connection]:
        assert self._pool is not None, "the database is open"
        async with self._pool.acquire(timeout=CONNECT_SECONDS_MAX) as connection:
            yield cast(Connection, connection)

    async def _spread(self, transaction: int, seconds: float) -> None:
        """Returns when all replicas that have their lease have heard of the change, or after
        `seconds`: one that hears nothing for so long has lost its lease, and refuses by itself."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        wait_seconds = _SPREAD_LOOK_SECONDS
        with contextlib.suppress(Unavailable):  # the change is made; only who knows is not known
            while await self.fetch(_DEAF, (transaction,)) and loop.time() < deadline:
                await asyncio.sleep(wait_seconds)
                wait_seconds = min(2 * wait_seconds, 0.2)

    async def _check_schema(self, pool: asyncpg.Pool) -> None:
        try:
            rows = await pool.fetch("SELECT migration_id FROM _yoyo_migration ORDER BY 1")
        except asyncpg.UndefinedTableError:
            raise StartError(
                f"The database {self.name} has no tables yet. Run `tollway migrate` with the role "
                "that may make them."
            ) from None
        except asyncpg.InsufficientPrivilegeError:
            raise StartError(
                f"The role of {self.name} may not read its tables. Run `tollway migrate` with "
                "--serving-role."
            ) from None
        check_versions(self.name, {row[0] for row in rows})


_DEAF = """
SELECT 1 FROM instances WHERE NOT reaped AND expires_at > now_ms()
   AND NOT COALESCE(txid_visible_in_snapshot(?, heard), false) LIMIT 1"""


def check_versions(name: str, applied: set[str]) -> None:
    """Raises `StartError` where the schema is older or newer than this version's."""
    known = set(postgres_migrations())
    require_known(f"The database {name}", applied, known)
    if missing := sorted(known - applied):
        raise StartError(
            f"The database {name} lacks {', '.join(missing)}. Run `tollway migrate` with the role "
            "that may change its tables."
        )


def database_name(url: str) -> str:
    """The address as it may be shown: without user, password and options."""
    parts = urlsplit(url)
    port = "" if parts.port is None else f":{parts.port}"
    return f"{parts.hostname or 'local'}{port}{parts.path}"


def is_unreachable(error: BaseException) -> bool:
    """Whether the server or the way to it is at fault, and not what was asked."""
    return isinstance(error, _UNREACHABLE)


def reason(error: BaseException) -> str:
    """What a log or a message may say of it: never the address, which may have a password."""
    text = str(error).partition("\n")[0].rstrip(".")
    return text or type(error).__name__


@contextlib.contextmanager
def told_as_unavailable():  # pyright: ignore[reportUnknownParameterType] (a generator)
    try:
        yield
    except _UNREACHABLE as error:
        log.warning("the database cannot be reached: %s", reason(error))
        raise Unavailable("The database cannot be reached now. Try again later.") from error


@lru_cache(maxsize=1024)
def dollars(sql: str) -> str:
    """The statement with `$1`, `$2` ... for each `?` that is not within quotes."""
    parts: list[str] = []
    number = 0
    quote = ""
    for character in sql:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character == "?":
            number += 1
            parts.append(f"${number}")
            continue
        parts.append(character)
    return "".join(parts)


def _rows_of(status: str) -> int:
    """`UPDATE 3` -> 3; 0 for what has no rows to tell of."""
    number = status.rpartition(" ")[2]
    return int(number) if number.isdigit() else 0

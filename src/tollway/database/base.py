"""What the rest asks of a database: portable SQL with `?` parameters, read at once and written
durably."""

from collections.abc import Sequence
from typing import Any, Protocol

Statement = tuple[str, Sequence[Any]]
"""SQL and its parameters. Any: a row's values are whatever its columns hold."""

Row = tuple[Any, ...]


class Database(Protocol):
    async def fetch(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """Rows as last committed. Raises `Unavailable` when the database cannot be read."""
        ...

    async def execute(self, *statements: Statement) -> int:
        """All of them in one transaction, on disk when this returns: the rows that the last one
        changed.

        Raises `Refused` where a constraint forbids it, `Unavailable` when the database cannot be
        written.
        """
        ...

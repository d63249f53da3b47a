"""Has an operation carried out: by the server that runs, through its control socket, or here where
none does."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from tollway.errors import StartError

if TYPE_CHECKING:
    from tollway.settings import Settings

_THE_SERVERS_ALONE = ("upstream list",)
"""What only a running server knows, whatever keeps the books."""


def execute(
    command: str, arguments: Mapping[str, object], config: Path | None, data_dir: Path | None
) -> dict[str, Any]:
    from tollway.api.admin.control import ask
    from tollway.settings import load_settings

    settings = load_settings(config, data_dir=data_dir, for_serving=False)
    given = {name: value for name, value in arguments.items() if value is not None}
    if settings.server.database.scheme and command not in _THE_SERVERS_ALONE:
        # Beside the servers, wherever they run.
        return _execute_here(settings, command, given)
    result = ask(settings.server.data_dir, command, given)
    if result is not None:
        return result
    try:
        return _execute_here(settings, command, given)
    except StartError:
        # A server that was just starting had the lock but no socket yet; by now it may listen.
        result = ask(settings.server.data_dir, command, given)
        if result is None:
            raise
        return result


def _execute_here(
    settings: "Settings", command: str, arguments: Mapping[str, object]
) -> dict[str, Any]:
    import asyncio

    from tollway.api.admin.control import user_name
    from tollway.store import is_new, open_operations

    async def run() -> dict[str, Any]:
        may_create = command == "account create"  # accounts may be there before the first start
        makes_one = may_create and is_new(settings)
        async with open_operations(settings, may_create=may_create) as operations:
            if makes_one:
                _tell_of_new_one(settings.server.data_dir)
            return await operations.execute(command, arguments, actor=user_name(os.getuid()))

    return asyncio.run(run())


def _tell_of_new_one(data_dir: Path) -> None:
    """It may be the wrong place, mistyped: the account would be missed where the server runs."""
    typer.echo(
        f"There was no Tollway in {data_dir}, so this made a new one there. If another was meant, "
        "check --data-dir.",
        err=True,
    )

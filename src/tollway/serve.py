"""The server's own process. It carries nothing that only commands need.

`tollway serve` reads its arguments, does what takes large libraries and can be done before
(`prepare`: migrations, the key that receipts are signed with), and then becomes this program, by
`execv` and so with the same process id. The server is 25 MB smaller for it, and starts in the same
time: `python -m tollway.serve` is never called by hand.
"""

import contextlib
import os
import signal
import sqlite3
import sys
from typing import NoReturn

import msgspec

from tollway.errors import TollwayError
from tollway.settings import CommandLine, Settings


def prepare(settings: Settings) -> None:
    """Raises `StartError`."""
    server = settings.server
    if server.database.scheme:
        return
    from tollway.database.data_directory import (
        DATABASE_FILE,
        look_into,
        own_data_directory,
        require_not_moved,
    )
    from tollway.database.migrate import is_current, migrate_sqlite
    from tollway.ledger.signing import KEY_FILE, SigningKey

    look_into(server.data_dir)
    require_not_moved(server.data_dir)
    path = server.data_dir / DATABASE_FILE
    if is_current(path) and (server.data_dir / KEY_FILE).exists():
        return
    with own_data_directory(server.data_dir):
        SigningKey.load(server.data_dir)
        # What the disk refuses here the server's own start meets again, and knows what to do.
        with contextlib.suppress(OSError, sqlite3.Error):
            path.touch(0o600)
            migrate_sqlite(path)


def become_server(given: CommandLine) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    # -P: modules are not looked for in the working directory.
    command = [sys.executable, "-P", "-m", "tollway.serve", msgspec.json.encode(given).decode()]
    os.execv(sys.executable, command)  # noqa: S606 (no shell is wanted)


def main() -> None:
    try:
        _serve()
    except TollwayError as error:
        print(error.message, file=sys.stderr)  # noqa: T201 (as the commands do)
        raise SystemExit(1) from None
    except KeyboardInterrupt:  # once it serves, Ctrl-C is a signal of the event loop's
        print("Stopped before it served anything.", file=sys.stderr)  # noqa: T201
        raise SystemExit(128 + signal.SIGINT) from None


def _serve() -> None:
    from tollway.app import serve
    from tollway.console import PlainConsole, TerminalConsole
    from tollway.process import spare_sqlite_its_statistics
    from tollway.reload import ConfigurationFile

    spare_sqlite_its_statistics()
    given = msgspec.json.decode(sys.argv[1], type=CommandLine)
    file = None if given.file is None else ConfigurationFile(given.file, given.settings)
    console = TerminalConsole() if sys.stdout.isatty() else PlainConsole()
    serve(given.settings(), console, file)


if __name__ == "__main__":
    main()

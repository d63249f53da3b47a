"""A disk that is really full, or a file that really cannot grow, while charges are in flight.

`python -m tests.unit.ledger.full_disk DIR mounted|small|limit` runs in a process of its own:
`mounted` fills a small file system that it mounts on DIR (in a mount namespace, under `unshare`),
`small` the one that DIR is on, and `limit` sets RLIMIT_FSIZE so that SQLite's log cannot be written
any further. It prints what it saw as JSON.
"""

import asyncio
import contextlib
import errno
import json
import logging
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from tests.unit.ledger.books import Books, an_outcome
from tests.unit.ledger.faults import mended

from tollway.database.journal import Ballast
from tollway.database.sqlite import SqliteDatabase
from tollway.errors import Unavailable

IN_FLIGHT = 200
ACCOUNTS = 20


def _database(path: Path) -> SqliteDatabase:
    ballast = Ballast(path.with_name("ballast"), 512 * 1024)
    return SqliteDatabase(path, ballast=ballast, retry_seconds=0.02)


async def run(data_dir: Path, how: str) -> dict[str, object]:
    books = await Books(data_dir, _database).open()
    accounts = [await books.account(10_000, f"acc_{n}") for n in range(ACCOUNTS)]
    holds = [await books.hold(accounts[n % ACCOUNTS], 10) for n in range(IN_FLIGHT)]
    with _limited(books.path) if how == "limit" else _full(data_dir):
        answers = await asyncio.wait_for(
            asyncio.gather(*(books.ledger.settle(hold, an_outcome(3)) for hold in holds)), 20
        )
        refused = await _is_refused(books, accounts[0])
        had_ballast = (data_dir / "ballast").exists()
        at_fault = books.database.fault
    await mended(books.database)
    await books.charge(accounts[0], 5, cost=5)
    rows = await books.database.fetch("SELECT COUNT(*), SUM(charged) FROM holds")
    violations = len(books.verify())
    await books.close()
    return {
        "answered": sum(answer.charged for answer in answers),
        "fault": at_fault,
        "refused meanwhile": refused,
        "ballast meanwhile": had_ballast,
        "ballast after": (data_dir / "ballast").exists(),
        "holds": rows[0][0],
        "charged": rows[0][1],
        "violations": violations,
    }


async def _is_refused(books: Books, account: str) -> bool:
    try:
        await books.hold(account, 1)
    except Unavailable:
        return True
    return False


@contextmanager
def _full(data_dir: Path) -> Generator[None]:
    filler = data_dir / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        for size in (65536, 512, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"\0" * size)
    yield
    filler.unlink()


@contextmanager
def _limited(database: Path) -> Generator[None]:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then a write fails with EFBIG
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    log_size = database.with_name(database.name + "-wal").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (log_size, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def main(directory: Path, how: str) -> None:
    logging.disable()
    if how == "mounted":
        mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(directory)]
        if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
            sys.exit(os.strerror(errno.EPERM))
    print(json.dumps(asyncio.run(run(directory, how))))  # noqa: T201 (a command)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])

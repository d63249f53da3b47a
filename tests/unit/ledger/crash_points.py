"""A small life of the ledger, with a real death of the process at every step of its writer.

A step is each statement that the writer gives SQLite and each fsync of the journal, before it and
after it. `python -m tests.unit.ledger.crash_points DIR` forks a process for every step, lets it die
there (SIGKILL), lets the recovery die as well, starts once more, and compares the ledger with what
the dead process had been told. It prints what it found as JSON.
"""

import asyncio
import errno
import itertools
import json
import logging
import os
import shutil
import signal
import sqlite3
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

from tests.support.sqlite import migrated
from tests.unit.ledger.books import Books, a_checkpoint, an_outcome
from tests.unit.ledger.faults import mended

from tollway.database.journal import Ballast, Journal
from tollway.database.sqlite import SqliteDatabase, connect
from tollway.ledger.base import Hold

CREDITS = 1000


class Doom:
    """Counts steps and dies at one of them."""

    def __init__(self, step: int | None) -> None:
        self.left = step
        self.commits_fail = False

    def step(self) -> None:
        if self.left is None:
            return
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1

    def database(self, path: Path) -> SqliteDatabase:
        return SqliteDatabase(
            path,
            connect_writer=self._connect,
            journal=Journal(path.with_name("journal"), fsync=self._fsync),
            ballast=Ballast(path.with_name("ballast"), 4096),
            retry_seconds=0.01,
        )

    def _connect(self, path: Path) -> sqlite3.Connection:
        connection = connect(path, _Connection)
        assert isinstance(connection, _Connection)
        connection.doom = self
        return connection

    def _fsync(self, descriptor: int) -> None:
        self.step()
        os.fsync(descriptor)
        self.step()


class _Connection(sqlite3.Connection):
    doom: Doom | None = None

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        if self.doom is None:
            return super().execute(sql, *parameters)
        if sql == "COMMIT" and self.doom.commits_fail:
            raise OSError(errno.EIO, "the disk refuses")
        self.doom.step()
        cursor = super().execute(sql, *parameters)
        self.doom.step()
        return cursor


async def live(data_dir: Path, step: int | None) -> None:
    """Charges through the database, through the journal and from a checkpoint; with a key and a
    cap. Whatever a client would be told is written to the file `told`, at once."""
    doom = Doom(None)
    books = await Books(data_dir, doom.database).open()
    await books.account(CREDITS)
    token = await books.token("acc_1", 500, "tok_1")
    doom.left = step
    told = os.open(data_dir / "told", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    async def settle(hold: Hold, cost: int) -> None:
        settlement = await books.ledger.settle(hold, an_outcome(cost))
        os.write(told, f"{hold.request_id} {settlement.charged}\n".encode())

    holds = [await books.hold("acc_1", 20, token_id=token, spend_cap=500) for _ in range(3)]
    ask = books.ask("acc_1", 20)
    await books.ledger.keys.claim("acc_1", "key", b"\x01" * 32, ask.request_id)
    keyed = await books.ledger.hold(ask)
    stream = await books.hold("acc_1", 50)
    await books.ledger.checkpoint([a_checkpoint(stream, 7, 0.0), a_checkpoint(keyed, 2, 0.0)])
    await asyncio.gather(*(settle(hold, 11) for hold in holds[:2]))
    doom.commits_fail = True
    await asyncio.gather(settle(holds[2], 13), settle(keyed, 4))
    doom.commits_fail = False
    await mended(books.database)
    await books.top_up("acc_1", 9, ref="more")
    await settle(await books.hold("acc_1", 20), 17)
    await books.ledger.checkpoint([a_checkpoint(stream, 21, 0.0)])
    os.write(told, b"end\n")
    os.kill(os.getpid(), signal.SIGKILL)


async def start_and_die(data_dir: Path, step: int) -> None:
    await Books(data_dir, Doom(step).database).open(with_price=False)


async def judge(data_dir: Path) -> dict[str, int]:
    """What a start finds, compared with what had been told."""
    books = await Books(data_dir, Doom(None).database, first_request=100).open(with_price=False)
    rows = await books.database.fetch("SELECT id, charged FROM holds")
    told_file = data_dir / "told"
    told = [line.split() for line in told_file.read_text().splitlines() if " " in line]
    charged = dict(rows)
    lost = sum(id_ not in charged for id_, _ in told)
    wrong = sum(charged.get(id_, int(amount)) != int(amount) for id_, amount in told)
    violations = len(books.verify())
    ((left_behind,),) = await books.database.fetch(
        "SELECT (SELECT COUNT(*) FROM checkpoints)"
        " + (SELECT COUNT(*) FROM idempotency WHERE completed = 0)"
    )
    await books.charge("acc_1", 5, cost=5)
    violations += len(books.verify())
    await books.close()
    return {
        "told": len(told),
        "lost": lost,
        "wrong": wrong,
        "violations": violations,
        "left behind": left_behind + len(Journal(data_dir / "journal").read()),
    }


def in_a_process_of_its_own(work: Callable[[], Coroutine[Any, Any, None]]) -> bool:
    """Whether it was killed."""
    child = os.fork()
    if child == 0:
        try:
            logging.disable()
            asyncio.run(work())
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def main(directory: Path) -> None:
    total: dict[str, int] = dict.fromkeys(
        ("points", "told", "lost", "wrong", "violations", "left behind"), 0
    )
    for step in itertools.count():
        data_dir = directory / str(step)
        data_dir.mkdir()
        migrated(data_dir / "tollway.db")  # what this process has made, those of its own need not
        in_a_process_of_its_own(partial(live, data_dir, step))
        in_a_process_of_its_own(partial(start_and_die, data_dir, step % 23))
        found = asyncio.run(judge(data_dir))
        reached_the_end = "end" in (data_dir / "told").read_text()
        shutil.rmtree(data_dir)
        total["points"] += 1
        for name, number in found.items():
            total[name] += number
        if reached_the_end:
            break
    print(json.dumps(total))  # noqa: T201 (a command)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

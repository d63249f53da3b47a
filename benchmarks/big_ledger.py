"""An installation with years behind it beside a new one: 10,000 accounts, 20,000 tokens and a
ledger of 5 million rows.

    python -m benchmarks.big_ledger [--rows 5000000] [--rounds 3] [--secs 5]
        [--only start,requests,pages,verify]

Makes both with the program's own ledger, which takes about ten minutes the first time (the large
one is kept in the temporary folder, about 5 GB), runs the server on both at once, and tells what a
start, a request and each listing costs on either. See README.md.
"""

import argparse
import asyncio
import contextlib
import http.client
import json
import os
import random
import shlex
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gateways import (
    BYTECODE_KEPT,
    MODEL,
    PATH,
    Gateway,
    tollway,
    tollway_places,
    upstream,
)
from benchmarks.load import Figures, plain
from benchmarks.machine import machine
from benchmarks.marked import write_between_marks
from benchmarks.processes import (
    BUILD,
    cpu_seconds,
    free_port,
    raise_file_limit,
    take_priority,
    used,
)
from tollway.accounts import Accounts
from tollway.api.admin.control import ask
from tollway.database.sqlite import SqliteDatabase, connect
from tollway.ledger.base import Attempt, HoldAsk, Outcome, genesis
from tollway.ledger.sqlite import SqliteLedger
from tollway.tokens import Tokens

PAGE = Path("docs/performance.md")
ACCOUNTS = 10_000
TOKENS = 20_000
DAYS = 500
STARTED = 1_750_000_000.0
CREDITS = 10_000_000_000
TOGETHER = 4096
PAGE_REQUESTS = 300
STARTS = 3


# --- making one -----------------------------------------------------------------------------------


class _Past:
    """A clock that is set by hand: the rows are spread over its days."""

    def __init__(self) -> None:
        self.seconds = STARTED

    def now(self) -> float:
        return self.seconds

    def monotonic(self) -> float:
        return self.seconds


def installation(folder: Path, rows: int) -> Path:
    """A data directory with the accounts and their tokens, and so many charges. One that is there
    from before a migration is migrated by its next start, as an operator's is."""
    data = folder / f"ledger-{rows}"
    if not (data / "tokens.txt").exists():
        shutil.rmtree(data, ignore_errors=True)
        data.mkdir(parents=True, mode=0o700)
        began = time.monotonic()
        asyncio.run(_fill(data, rows))
        print(f"made {data.name} in {time.monotonic() - began:.0f} s", flush=True)
    return data


async def _fill(data: Path, rows: int) -> None:
    clock = _Past()
    database = SqliteDatabase(data / "tollway.db", connect_writer=_connect_fast)
    database.open()
    accounts, tokens = Accounts(database, clock), Tokens(database, clock)
    ledger = SqliteLedger(database, clock, lambda account_id, token_id: None)
    await ledger.recover()
    owners: list[tuple[str, str]] = []
    secrets: list[str] = []
    for number in range(ACCOUNTS):
        account = await accounts.create(f"account {number}", chain_head=genesis)
        await ledger.add(
            account.id, CREDITS, kind="top_up", ref=f"t{number}", description="prepaid"
        )
        for name in range(TOKENS // ACCOUNTS):
            token, secret = await tokens.issue(
                account.id, name=f"token {name}", scopes=("llm-all", "account")
            )
            owners.append((account.id, token.id))
            secrets.append(secret)
    await database.execute(
        (
            "INSERT INTO prices (id, model, prompt_rate, completion_rate, created_at)"
            " VALUES ('price_1', ?, 700, 4000, ?)",
            (MODEL, int(STARTED * 1000)),
        ),
    )
    random.seed(1)
    for first in range(0, rows, TOGETHER):
        together = range(first, min(first + TOGETHER, rows))
        await asyncio.gather(
            *[
                await _charge(ledger, clock, number / rows, random.choice(owners))
                for number in together
            ]
        )
    await database.close()
    _settle_down(data / "tollway.db")
    (data / "tokens.txt").write_text("\n".join(secrets) + "\n")


async def _charge(
    ledger: SqliteLedger, clock: _Past, share: float, owner: tuple[str, str]
) -> "asyncio.Future[object]":
    clock.seconds = STARTED + share * DAYS * 86_400
    account_id, token_id = owner
    request_id = f"req_{int(clock.seconds * 1000):012x}{os.urandom(10).hex()}"
    hold = await ledger.hold(
        HoldAsk(request_id, account_id, token_id, "price_1", 3, 3, None, clock.seconds)
    )
    return ledger.settle(
        hold,
        Outcome(
            status="completed",
            model=MODEL,
            input_tokens=212,
            output_tokens=64,
            source="upstream",
            cost=1,
            attempts=(Attempt("bench", 200),),
            upstream="bench",
            upstream_id="chatcmpl-7f3d9a2b8c1e4f60a5d2b9c8e7f1a0b3",
            first_token_seconds=0.1,
            total_seconds=0.9,
        ),
    )


def _connect_fast(path: Path) -> sqlite3.Connection:
    """What is made again when it breaks need not be on disk at each commit."""
    connection = connect(path)
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("PRAGMA cache_size = -4000000")
    connection.execute("PRAGMA wal_autocheckpoint = 100000")
    return connection


def _settle_down(path: Path) -> None:
    with contextlib.closing(connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


# --- measuring ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Installation:
    name: str
    data: Path
    gateway: Gateway


def main() -> None:
    chosen = _options()
    raise_file_limit()
    take_priority(chosen.nice)
    folder = Path(chosen.folder)
    new, old = installation(folder, 0), installation(folder, chosen.rows)
    program = shlex.split(chosen.tollway)
    rounds: list[dict[str, Figures]] = []
    with tempfile.TemporaryDirectory(prefix="tollway-big-") as scratch:
        places = Path(scratch)
        only = chosen.only.split(",")
        starts = _starts(places, program, new, old) if "start" in only else {}
        with _both(places, program, new, old) as installations:
            for number in range(chosen.rounds):
                turn = installations[:: -1 if number % 2 else 1]
                rounds.append({each.name: {} for each in installations})
                for test in (name for name in TESTS if name in only):
                    for each in turn:
                        rounds[-1][each.name] |= TESTS[test](each, chosen.secs)
                print(f"round {number + 1}: {json.dumps(rounds[-1])}", flush=True)
            sizes = {each.name: _size(each) for each in installations}
    written = _report(rounds, starts, sizes)
    print(written)
    if chosen.page:
        day = time.strftime("%Y-%m-%d")
        head = f"{day}, {machine()}; the lowest of {chosen.rounds} rounds, starts the median of 3."
        write_between_marks(PAGE, "big", f"{head}\n\n{written}")


@contextlib.contextmanager
def _both(places: Path, program: list[str], new: Path, old: Path) -> Generator[list[Installation]]:
    with contextlib.ExitStack() as stack:
        model = stack.enter_context(upstream(places))
        yield [
            Installation(
                name, data, stack.enter_context(tollway(places, model, program, data=data))
            )
            for name, data in (("new", new), ("5 million rows", old))
        ]


def _starts(places: Path, program: list[str], new: Path, old: Path) -> dict[str, Figures]:
    """Until it answers that it is ready: the first time here, which may migrate, is not counted.
    "Cold": none of the database's file is in memory."""
    measured: dict[str, dict[str, list[float]]] = {"new": {}, "5 million rows": {}}
    for name, data in (("new", new), ("5 million rows", old)):
        _start_seconds(places, program, data)
        for how in ("start_s", "cold_start_s") * STARTS:
            if how == "cold_start_s":
                _drop_from_memory(data / "tollway.db")
            seconds, cpu = _start_seconds(places, program, data)
            measured[name].setdefault(how, []).append(seconds)
            measured[name].setdefault(how.replace("start_s", "start_cpu_s"), []).append(cpu)
    return {
        name: {how: statistics.median(each) for how, each in of.items()}
        for name, of in measured.items()
    }


def _start_seconds(places: Path, program: list[str], data: Path) -> tuple[float, float]:
    """Until it is ready, and of the CPU meanwhile."""
    port = free_port()
    command = [*program, "serve", *tollway_places(places, 9, data), "--port", str(port)]
    began = time.monotonic()
    environment = {**os.environ, **BYTECODE_KEPT}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    try:
        while not _is_ready(port):
            if process.poll() is not None:
                raise SystemExit(f"{shlex.join(command)} did not start")
            time.sleep(0.005)
        return time.monotonic() - began, cpu_seconds(process.pid)
    finally:
        process.terminate()
        process.wait()


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def _drop_from_memory(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def requests(of: Installation, seconds: int) -> Figures:
    """With one token, and with another of the 20,000 each time."""
    one = plain(of.gateway, seconds)
    many = plain(of.gateway, seconds, of.data / "tokens.txt")
    if one["errors"] or many["errors"]:
        raise SystemExit(f"{of.name}: there were errors: {one} {many}")
    return {"one_token_us": one["request_us"], "all_tokens_us": many["request_us"]}


def pages(of: Installation, seconds: int) -> Figures:
    """The median of 300 answers to each, one after the other, of an account in the middle."""
    del seconds
    secret = (of.data / "tokens.txt").read_text().split()[TOKENS // 2]
    last = max(1, _entries_of(of, secret) // 20)
    return {
        "me_ms": _median_ms(of, secret, "/api/v1/accounts/me"),
        "first_page_ms": _median_ms(of, secret, "/api/v1/credit-transactions?page=1&limit=20"),
        "last_page_ms": _median_ms(of, secret, f"/api/v1/credit-transactions?page={last}&limit=20"),
        "receipt_ms": _median_ms(of, secret, f"/api/v1/receipts/{_a_request(of, secret)}"),
        "tokens_ms": _median_ms(of, secret, "/api/v1/auth/pat"),
    }


def _entries_of(of: Installation, secret: str) -> int:
    page = _get(of, secret, "/api/v1/credit-transactions?page=1&limit=1")
    return json.loads(page)["pagination"]["total"]


def _a_request(of: Installation, secret: str) -> str:
    """The oldest of the account's: one is made where there is none yet."""
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "Hello."}]})
    headers = {"authorization": f"Bearer {secret}", "content-type": "application/json"}
    connection = http.client.HTTPConnection("127.0.0.1", of.gateway.port)
    connection.request("POST", PATH, body, headers)
    assert connection.getresponse().status == 200
    connection.close()
    oldest = _entries_of(of, secret) - 1
    page = _get(of, secret, f"/api/v1/credit-transactions?page={oldest}&limit=1")
    return json.loads(page)["data"][0]["requestId"]


def _median_ms(of: Installation, secret: str, path: str) -> float:
    taken: list[float] = []
    connection = http.client.HTTPConnection("127.0.0.1", of.gateway.port)
    for _ in range(PAGE_REQUESTS):
        began = time.perf_counter()
        connection.request("GET", path, headers={"authorization": f"Bearer {secret}"})
        answer = connection.getresponse()
        body = answer.read()
        taken.append((time.perf_counter() - began) * 1000)
        if answer.status != 200:
            raise SystemExit(f"{path} answered {answer.status}: {body!r}")
    connection.close()
    return statistics.median(taken)


def _get(of: Installation, secret: str, path: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", of.gateway.port)
    connection.request("GET", path, headers={"authorization": f"Bearer {secret}"})
    try:
        return connection.getresponse().read()
    finally:
        connection.close()


def commands(of: Installation, seconds: int) -> Figures:
    """On the running server's control socket, as `tollway account list` asks it."""
    del seconds
    taken: dict[str, float] = {}
    for key, command in (("account_list_ms", "account list"), ("token_list_ms", "token list")):
        each: list[float] = []
        for _ in range(5):
            began = time.perf_counter()
            result = ask(of.data, command, {})
            assert result is not None
            each.append((time.perf_counter() - began) * 1000)
        taken[key] = statistics.median(each)
    return taken


TESTS: dict[str, Callable[[Installation, int], Figures]] = {
    "requests": requests,
    "pages": pages,
    "commands": commands,
}


def _size(of: Installation) -> Figures:
    with contextlib.closing(sqlite3.connect(of.data / "tollway.db")) as connection:
        (rows,) = connection.execute("SELECT count(*) FROM ledger").fetchone()
    size = (of.data / "tollway.db").stat().st_size
    resident = used(of.gateway.pid).resident_bytes
    return {"rows": rows, "file_mb": size / 2**20, "resident_mb": resident / 2**20}


# --- the table ------------------------------------------------------------------------------------

ROWS: dict[str, str] = {
    "rows": "ledger rows",
    "file_mb": "MB of the database's file",
    "start_s": "start until ready, s",
    "start_cpu_s": "of it CPU, s",
    "cold_start_s": "the same, nothing of the file in memory, s",
    "cold_start_cpu_s": "of it CPU, s",
    "resident_mb": "RSS after the tests, MB",
    "one_token_us": "CPU us a request, one token",
    "all_tokens_us": "CPU us a request, another of 20,000 tokens each time",
    "me_ms": "`GET /accounts/me`, ms",
    "first_page_ms": "`GET /credit-transactions`, first page, ms",
    "last_page_ms": "the same, last page, ms",
    "receipt_ms": "`GET /receipts/{id}` of the oldest request, ms",
    "tokens_ms": "`GET /auth/pat`, ms",
    "account_list_ms": "`tollway account list` (10,000), ms",
    "token_list_ms": "`tollway token list` (20,000), ms",
}


def _report(
    rounds: list[dict[str, Figures]], starts: dict[str, Figures], sizes: dict[str, Figures]
) -> str:
    names = list(sizes)
    best: dict[str, Figures] = {}
    for name in names:
        best[name] = dict(sizes[name]) | starts.get(name, {})
        for key in rounds[0][name]:
            best[name][key] = min(measured[name][key] for measured in rounds)
    lines = [f"|  | {' | '.join(names)} | ratio |", "|---|--:|--:|--:|"]
    for key, title in ROWS.items():
        if key in best[names[0]]:
            new, old = (best[name][key] for name in names)
            digits = 0 if new >= 1000 else 2 if new < 10 else 1
            lines.append(f"| {title} | {new:,.{digits}f} | {old:,.{digits}f} | {old / new:.2f}x |")
    return "\n".join(lines) + "\n"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--secs", type=int, default=5)
    parser.add_argument("--only", default="start,requests,pages,commands")
    parser.add_argument("--nice", type=int, default=0, help="-20: the neighbours wait (root)")
    parser.add_argument("--page", action="store_true", help=f"write the table into {PAGE}")
    parser.add_argument("--folder", default=str(BUILD))
    parser.add_argument("--tollway", default=f"{sys.executable} -m tollway")
    return parser.parse_args()


if __name__ == "__main__":
    main()

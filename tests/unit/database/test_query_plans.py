"""However long an installation's history, nothing reads all of it: every statement that a start, a
request, a page or a command runs finds its rows by an index.

The statements are those that the program ran here, not copies of them; SQLite tells its plan for
each. `ledger verify` is not among them: to read everything is its purpose.
"""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.unit.ledger.books import Books, a_checkpoint, an_outcome

from tollway.database import sqlite
from tollway.settings import load_settings
from tollway.store import open_operations

HISTORY = ("ledger", "usage", "idempotency", "audit")
OWNERS = ("accounts", "tokens")
SHORT_INDEXES = ("idempotency_running",)
"""They have only the rows of what runs, so reading all of one is not reading the table."""

CONFIG = """
[tiers.t]
prompt_rate = 1000
completion_rate = 2000

[[upstreams]]
name = "gpu-1"
base_url = "http://127.0.0.1:9/v1"

[[models]]
id = "acme/m1"
tier = "t"
context_length = 1000
max_output_tokens = 100
upstreams = [{ name = "gpu-1", model = "m" }]
"""


class Traced:
    """Every statement that any connection of the program runs, with its values in it."""

    def __init__(self) -> None:
        self.statements: list[str] = []
        self._connect = sqlite.connect

    def connect(self, path: Path, *arguments: Any) -> sqlite3.Connection:
        connection = self._connect(path, *arguments)
        connection.set_trace_callback(self.statements.append)
        return connection

    def scans(self, path: Path, tables: tuple[str, ...]) -> list[tuple[str, str]]:
        """Each statement that reads one of the tables from end to end, with that step of its
        plan."""
        found: list[tuple[str, str]] = []
        with closing(self._connect(path)) as connection:
            for statement in dict.fromkeys(self.statements):
                if not statement.startswith(("SELECT", "UPDATE", "DELETE", "INSERT", "WITH")):
                    continue
                plan = connection.execute("EXPLAIN QUERY PLAN " + statement).fetchall()
                steps = [step for *_, step in plan]
                found += [(step, statement) for step in steps if _scans(step, tables)]
        return found


def _scans(step: str, tables: tuple[str, ...]) -> bool:
    """Also by way of an index: `x IN (SELECT id FROM t)` goes through all of its index."""
    if step.startswith("SCAN "):
        return step.split(" ")[1] in tables and not step.endswith(SHORT_INDEXES)
    return step.endswith("FOR IN-OPERATOR") and any(f"_{table}_" in step for table in tables)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Traced:
    traced = Traced()
    monkeypatch.setattr(sqlite, "connect", traced.connect)
    return traced


@pytest.fixture
async def books(tmp_path: Path, traced: Traced) -> AsyncIterator[Books]:
    """After a crash with a stream and an idempotency key under way."""
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    books = await Books(data_dir).open()
    account = await books.account(1000)
    await books.token(account, 500, "tok_capped")
    await books.charge(account, 10, 5)
    streamed = await books.hold(account, 10)
    await books.ledger.checkpoint([a_checkpoint(streamed, 4, books.clock.now())])
    await books.ledger.keys.claim(account, "key", b"body", "req_claimed")
    await books.crash()
    yield books
    await books.close()


async def test_a_start_reads_none_of_the_history_from_end_to_end(
    books: Books, traced: Traced
) -> None:
    await books.ledger.admissions_since(books.clock.now() - 60)

    assert traced.scans(books.path, HISTORY) == []


async def test_a_request_a_page_and_a_receipt_find_their_rows_by_an_index(
    books: Books, traced: Traced
) -> None:
    traced.statements.clear()
    ledger = books.ledger
    await ledger.keys.claim("acc_1", "key-2", b"body", "req_0100")
    hold = await books.hold("acc_1", 10, token_id="tok_capped", spend_cap=500)
    await ledger.checkpoint([a_checkpoint(hold, 4, books.clock.now())])
    await ledger.settle(hold, an_outcome(6))
    await books.top_up("acc_1", 5, ref="again")
    await ledger.entries("acc_1", page=1, limit=20)
    await ledger.entries("acc_1", page=2, limit=2)
    await ledger.receipt(hold.request_id)
    await ledger.keys.sweep()

    assert len(traced.statements) > 15
    assert traced.scans(books.path, HISTORY + OWNERS) == []


async def test_no_command_reads_the_history_from_end_to_end(tmp_path: Path, traced: Traced) -> None:
    config, data_dir = tmp_path / "tollway.toml", tmp_path / "data"
    config.write_text(CONFIG)
    settings = load_settings(config, data_dir=data_dir)
    commands: list[tuple[str, dict[str, object]]] = [
        ("account create", {"name": "acme", "credits": 100}),
        ("account set", {"name": "acme", "requests_per_minute": 5}),
        ("account list", {}),
        ("account show", {"name": "acme"}),
        ("account freeze", {"name": "acme"}),
        ("account unfreeze", {"name": "acme"}),
        ("credit top-up", {"account": "acme", "amount": 5, "reference": "r1"}),
        ("credit adjust", {"account": "acme", "amount": -5, "reason": "why"}),
        ("token issue", {"account": "acme", "name": "t", "spend_cap": 50}),
        ("token list", {}),
        ("model list", {}),
        ("usage", {"by": "account", "since": 0.0, "until": 20_000.0}),
        ("usage", {"by": "day", "since": 0.0, "until": 20_000.0, "account": "acme"}),
    ]

    async with open_operations(settings, may_create=True) as operations:
        for command, arguments in commands:
            await operations.execute(command, arguments, actor="tester")

    assert len(traced.statements) > 30
    assert traced.scans(data_dir / "tollway.db", HISTORY) == []


def test_a_scan_is_seen(tmp_path: Path, traced: Traced) -> None:
    path = tmp_path / "tollway.db"
    connection = traced.connect(path)
    connection.execute("CREATE TABLE usage (request_id TEXT PRIMARY KEY, model TEXT)")
    connection.execute("SELECT * FROM usage WHERE request_id = ?", ("req_1",))
    connection.execute("SELECT count(*) FROM usage WHERE model = ?", ("m1",))
    by_index = "DELETE FROM streams WHERE id IN (SELECT request_id FROM usage)"
    connection.execute("CREATE TABLE streams (id TEXT PRIMARY KEY)")
    connection.execute(by_index)
    connection.close()

    assert traced.scans(path, HISTORY) == [
        ("SCAN usage", "SELECT count(*) FROM usage WHERE model = 'm1'"),
        ("USING INDEX sqlite_autoindex_usage_1 FOR IN-OPERATOR", by_index),
    ]

"""Recomputes the ledger of a SQLite file from its entries, and finds whatever does not agree.

Everything is checked in one snapshot, while the server may be writing. SQLite does the sums; only
the hash chains are followed in Python, a block of rows at a time, so memory does not grow with the
ledger. Each check names at most `VIOLATIONS_MAX` rows: a broken file is told from a whole one by
the first.

Holds in flight are not in the file. Whoever calls gives those that were open *before* the snapshot
began; one that has been settled since is in the file as closed, and left out.
"""

import hashlib
import itertools
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import msgspec
from msgspec import Struct

from tollway.database.migrate import sqlite_schema
from tollway.ledger.base import Hold, genesis

VIOLATIONS_MAX = 100
_ROWS_PER_BLOCK = 10_000
_OPEN_HOLDS_PER_QUERY = 500

_encode = msgspec.json.Encoder().encode


class Violation(Struct, frozen=True):
    """`check` is the rule that does not hold, `row` where, `message` how: expected and found."""

    check: str
    row: str
    message: str


def verify(connection: sqlite3.Connection, open_holds: Iterable[Hold] = ()) -> list[Violation]:
    """Every violation, in the order of the checks; an empty list is a whole ledger."""
    in_flight = list(open_holds)
    ours = not connection.in_transaction
    if ours:
        connection.execute("BEGIN")
    try:
        return [
            violation
            for name, check in _checks(in_flight)
            for violation in _run(name, check, connection)
        ]
    finally:
        if ours:
            connection.execute("ROLLBACK")


_Check = Callable[[sqlite3.Connection], Iterable[Violation]]


def _checks(in_flight: Sequence[Hold]) -> list[tuple[str, _Check]]:
    return [
        ("integrity", _integrity),
        ("foreign keys", _foreign_keys),
        ("schema", _schema),
        *((name, partial(_query, name, sql)) for name, sql in QUERIES),
        ("open holds", partial(_open_holds, in_flight)),
        ("hash chain", _hash_chains),
    ]


# Of pages, and of values that are not what their columns are for: SQLite takes any in any column.
_DAMAGE_ERRORS = (sqlite3.DatabaseError, ValueError, TypeError, AttributeError)


def _run(name: str, check: _Check, connection: sqlite3.Connection) -> list[Violation]:
    try:
        return list(itertools.islice(check(connection), VIOLATIONS_MAX))
    except _DAMAGE_ERRORS as error:  # it must not hide what the others find
        return [Violation(name, "", f"could not be checked: {error}")]


# --- the file itself ------------------------------------------------------------------------------


def _integrity(connection: sqlite3.Connection) -> Iterator[Violation]:
    for (message,) in connection.execute(f"PRAGMA integrity_check({VIOLATIONS_MAX})"):
        if message != "ok":
            yield Violation("integrity", "", message)


def _foreign_keys(connection: sqlite3.Connection) -> Iterator[Violation]:
    for table, rowid, parent, _ in connection.execute("PRAGMA foreign_key_check"):
        yield Violation("foreign keys", f"{table} {rowid}", f"names a row of {parent} that is not")


def _schema(connection: sqlite3.Connection) -> Iterator[Violation]:
    """Tables, indexes and triggers are as the migrations made them: the refusals are among
    these."""
    expected = sqlite_schema()
    found: dict[tuple[str, str], str] = {
        (kind, name): sql
        for kind, name, sql in connection.execute(
            "SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL"
        )
    }
    for (kind, name), sql in expected.items():
        if (kind, name) not in found:
            yield Violation("schema", f"{kind} {name}", "is missing")
        elif found[kind, name] != sql:
            yield Violation("schema", f"{kind} {name}", f"was changed to: {found[kind, name]}")
    for kind, name in found.keys() - expected.keys():
        if kind == "trigger":
            yield Violation("schema", f"{kind} {name}", f"was added: {found[kind, name]}")


# --- sums and counterparts ------------------------------------------------------------------------


def _query(check: str, sql: str, connection: sqlite3.Connection) -> Iterator[Violation]:
    for row, message in connection.execute(f"{sql} LIMIT {VIOLATIONS_MAX}"):
        yield Violation(check, str(row), str(message))


# As `pricing.charge` reckons it, over `usage u` and `prices p`.
_COST = """
    ((u.prompt_tokens - u.cached_tokens) * p.prompt_rate
     + u.cached_tokens * COALESCE(p.cached_prompt_rate, p.prompt_rate)
     + (u.completion_tokens - u.reasoning_tokens) * p.completion_rate
     + u.reasoning_tokens * COALESCE(p.reasoning_rate, p.completion_rate) + 999999) / 1000000"""

# Each gives a row and what is wrong with it. A number that is too large for 64 bits becomes a float
# in SQLite, which is exact enough to be unequal; what we write never costs so much (`RATE_MAX`).
QUERIES: tuple[tuple[str, str], ...] = (
    (
        "balance not below zero or held",
        """
        SELECT 'account ' || id, 'balance ' || balance || ', held ' || held FROM accounts
         WHERE balance < 0 OR held < 0 OR balance < held""",
    ),
    (
        "held equals open holds",
        """
        SELECT 'account ' || id, 'holds are in memory, and the file says ' || held || ' are held'
          FROM accounts WHERE held IS NOT 0""",
    ),
    (
        "balance equals entries",
        """
        SELECT 'account ' || a.id, 'balance ' || a.balance || ', its entries add up to ' || e.total
          FROM accounts a JOIN (
            SELECT accounts.id, COALESCE(SUM(ledger.amount), 0) AS total
              FROM accounts LEFT JOIN ledger ON ledger.account_id = accounts.id
             GROUP BY accounts.id) e ON e.id = a.id
         WHERE a.balance IS NOT e.total""",
    ),
    (
        "sequence without gaps",
        """
        SELECT 'account ' || a.id, 'the last entry should be ' || a.seq || '; there are '
               || e.entries || ', the first ' || COALESCE(e.first, 0) || ', the last '
               || COALESCE(e.last, 0)
          FROM accounts a JOIN (
            SELECT accounts.id, COUNT(ledger.seq) AS entries, MIN(ledger.seq) AS first,
                   MAX(ledger.seq) AS last
              FROM accounts LEFT JOIN ledger ON ledger.account_id = accounts.id
             GROUP BY accounts.id) e ON e.id = a.id
         WHERE e.entries IS NOT a.seq OR COALESCE(e.last, 0) IS NOT a.seq
            OR COALESCE(e.first, 1) IS NOT 1""",
    ),
    (
        "entry of an account",
        """
        SELECT 'ledger ' || account_id || ' ' || seq, 'there is no such account' FROM ledger
         WHERE account_id NOT IN (SELECT id FROM accounts)""",
    ),
    (
        "running sum",
        """
        SELECT 'ledger ' || account_id || ' ' || seq,
               'balance_after ' || balance_after || ', the entries up to here add up to ' || running
          FROM (SELECT account_id, seq, balance_after,
                       SUM(amount) OVER (PARTITION BY account_id ORDER BY seq) AS running
                  FROM ledger) sums
         WHERE balance_after IS NOT running""",
    ),
    (
        "hold has its charge",
        """
        SELECT 'hold ' || h.id, 'charged ' || (h.charged + h.late) || ' to ' || h.account_id
               || ' at ' || h.closed_at || '; its entry: '
               || COALESCE(l.amount || ' of ' || l.account_id || ' at ' || l.created_at, 'none')
          FROM holds h LEFT JOIN ledger l ON l.ref = h.id AND l.kind = 'charge'
         WHERE (h.charged + h.late > 0 OR l.ref IS NOT NULL)
           AND (l.amount IS NOT -(h.charged + h.late) OR l.account_id IS NOT h.account_id
                OR l.created_at IS NOT h.closed_at)""",
    ),
    (
        "charge has its hold",
        """
        SELECT 'ledger ' || account_id || ' ' || seq, 'there is no hold ' || ref FROM ledger
         WHERE kind = 'charge' AND NOT EXISTS (SELECT 1 FROM holds WHERE holds.id = ledger.ref)""",
    ),
    (
        "charge within its hold",
        """
        SELECT 'hold ' || id, 'charged ' || charged || ' + ' || late || ' of ' || amount FROM holds
         WHERE charged < 0 OR late < 0 OR charged + late > amount""",
    ),
    (
        "state of a hold",
        """
        SELECT 'hold ' || id, state || ' and charged ' || (charged + late) FROM holds
         WHERE state NOT IN ('settled', 'released', 'expired')
            OR (state = 'settled' AND charged + late = 0)
            OR (state = 'released' AND charged + late > 0)""",
    ),
    (
        "usage at its price",
        f"""
        SELECT 'usage ' || u.request_id,
               CASE WHEN p.id IS NULL THEN 'there is no price ' || h.price_id
               WHEN p.model <> u.model THEN 'the price ' || p.id || ' is of ' || p.model
               ELSE u.prompt_tokens || ' + ' || u.completion_tokens || ' tokens, '
                    || u.cached_tokens || ' cached and ' || u.reasoning_tokens
                    || ' reasoning, cost ' || {_COST} || '; charged ' || (h.charged + h.late)
                    || ', shortfall ' || h.shortfall END
          FROM usage u JOIN holds h ON h.id = u.request_id LEFT JOIN prices p ON p.id = h.price_id
         WHERE p.id IS NULL OR p.model IS NOT u.model
            OR h.charged + h.late + h.shortfall IS NOT {_COST}""",  # noqa: S608 (no value in it)
    ),
    (
        "parts of a usage",
        """
        SELECT 'usage ' || request_id, cached_tokens || ' cached of ' || prompt_tokens || ', '
               || reasoning_tokens || ' reasoning of ' || completion_tokens FROM usage
         WHERE cached_tokens NOT BETWEEN 0 AND prompt_tokens
            OR reasoning_tokens NOT BETWEEN 0 AND completion_tokens""",
    ),
    (
        "charge says its usage",
        """
        SELECT 'usage ' || u.request_id, u.model || ': ' || u.prompt_tokens || ' + '
               || u.completion_tokens || ' tokens; the entry says ' || l.description
          FROM ledger l JOIN usage u ON u.request_id = l.ref
         WHERE l.kind = 'charge' AND l.description IS NOT
               u.model || ': ' || u.prompt_tokens || ' + ' || u.completion_tokens || ' tokens'""",
    ),
    (
        "refund within its charge",
        """
        SELECT 'ledger ' || r.account_id || ' ' || r.seq, 'refund of ' || r.amount || '; charge: '
               || COALESCE(-c.amount || ' of ' || c.account_id, 'none')
          FROM ledger r LEFT JOIN ledger c ON c.ref = r.ref AND c.kind = 'charge'
         WHERE r.kind = 'refund' AND (c.ref IS NULL OR c.account_id IS NOT r.account_id
               OR r.amount < 0 OR r.amount > -c.amount)""",
    ),
    (
        "spent of a token",
        """
        SELECT 'token ' || t.id, 'spent ' || t.spent || ', its holds were charged '
               || COALESCE(h.charged, 0)
          FROM tokens t LEFT JOIN (
            SELECT token_id, SUM(charged + late) AS charged FROM holds
             WHERE token_id IN (SELECT id FROM tokens WHERE spend_cap IS NOT NULL)
             GROUP BY token_id) h ON h.token_id = t.id
         WHERE t.spend_cap IS NOT NULL AND t.spent IS NOT COALESCE(h.charged, 0)""",
    ),
    (
        "checkpoint of an open hold",
        """
        SELECT 'checkpoint ' || hold_id, 'its hold has ended' FROM checkpoints
         WHERE hold_id IN (SELECT id FROM holds)""",
    ),
)


def _open_holds(in_flight: Sequence[Hold], connection: sqlite3.Connection) -> Iterator[Violation]:
    """What each account's open holds set aside is covered by its balance."""
    ended: set[str] = set()
    for start in range(0, len(in_flight), _OPEN_HOLDS_PER_QUERY):
        ids = [hold.request_id for hold in in_flight[start : start + _OPEN_HOLDS_PER_QUERY]]
        places = ", ".join("?" * len(ids))
        rows = connection.execute(f"SELECT id FROM holds WHERE id IN ({places})", ids)  # noqa: S608
        ended.update(id_ for (id_,) in rows)
    held: dict[str, int] = {}
    for hold in in_flight:
        if hold.request_id not in ended:
            held[hold.account_id] = held.get(hold.account_id, 0) + hold.amount
    for account_id, amount in held.items():
        row = connection.execute("SELECT balance FROM accounts WHERE id = ?", (account_id,))
        (balance,) = row.fetchone() or (None,)
        if balance is None or balance < amount:
            yield Violation(
                "open holds", f"account {account_id}", f"balance {balance}, open holds {amount}"
            )


# --- the hash chains ------------------------------------------------------------------------------

_LINKS = """
SELECT account_id, seq, kind, amount, balance_after, ref, description, created_at, hash
  FROM ledger WHERE (account_id, seq) > (?, ?) ORDER BY account_id, seq LIMIT ?"""


def _hash_chains(connection: sqlite3.Connection) -> Iterator[Violation]:
    """Each entry's hash is over the one before it and its own columns; the account has the last."""
    heads = connection.execute("SELECT id, chain_head FROM accounts ORDER BY id")
    account_id: str | None = None
    link: bytes = b""
    links = _Heads(heads)
    for row in _entries(connection):
        if row[0] != account_id:
            yield from links.end(account_id, link)
            account_id = row[0]
            link = genesis(row[0])
        link, whole = follows(link, row)
        if not whole:
            yield Violation(
                "hash chain", f"ledger {row[0]} {row[1]}", "does not follow from the one before it"
            )
            link = row[8]  # the rows after it may be whole
    yield from links.end(account_id, link)
    yield from links.rest()


def follows(before: bytes, row: tuple[Any, ...]) -> tuple[bytes, bool]:
    """What the hash of an entry should be, by the one before it, and whether it is."""
    try:
        expected = hashlib.sha256(before + _encode(row[:8])).digest()
    except (TypeError, ValueError):  # not the type that we write, or no UTF-8
        return row[8], False
    return expected, expected == row[8]


class _Heads:
    """The accounts and the ends of their chains, both in the order of the accounts' ids."""

    def __init__(self, accounts: Iterator[tuple[str, bytes]]) -> None:
        self._accounts = accounts
        self._next = next(accounts, None)

    def end(self, account_id: str | None, link: bytes) -> Iterator[Violation]:
        """The chain of `account_id` ended with `link`; accounts before it have no entries."""
        if account_id is None:
            return
        while self._next is not None and self._next[0] <= account_id:
            expected = link if self._next[0] == account_id else genesis(self._next[0])
            yield from self._compare(expected)

    def rest(self) -> Iterator[Violation]:
        while self._next is not None:
            yield from self._compare(genesis(self._next[0]))

    def _compare(self, expected: bytes) -> Iterator[Violation]:
        assert self._next is not None
        id_, head = self._next
        if head != expected:
            yield Violation(
                "hash chain", f"account {id_}", "chain_head is not the hash of its last entry"
            )
        self._next = next(self._accounts, None)


def _entries(connection: sqlite3.Connection) -> Iterator[tuple[Any, ...]]:
    after: tuple[Any, Any] = ("", 0)
    while True:
        try:
            rows = connection.execute(_LINKS, (*after, _ROWS_PER_BLOCK)).fetchall()
        except sqlite3.OperationalError:
            rows = _undecodable_block(connection, after)
        if not rows:
            return
        yield from rows
        after = rows[-1][0], rows[-1][1]


def _undecodable_block(
    connection: sqlite3.Connection, after: tuple[Any, Any]
) -> list[tuple[Any, ...]]:
    """A block with text that is not UTF-8: surrogates stand for it, which no hash of ours was
    over."""
    usual = connection.text_factory
    connection.text_factory = partial(str, encoding="utf-8", errors="surrogateescape")
    try:
        return connection.execute(_LINKS, (*after, _ROWS_PER_BLOCK)).fetchall()
    finally:
        connection.text_factory = usual

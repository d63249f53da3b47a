"""Recomputes the ledger in Postgres from its entries, and finds whatever does not agree.

All in one snapshot, while replicas write. The sums are those that a SQLite file is checked with
(`ledger/verify.py`); what differs is that holds in flight are rows, that one can be charged late,
and that credit can be leased. The hash chains are followed here and not by the database's own
function, which made them.
"""

import re
from collections.abc import AsyncIterator, Mapping, Sequence

from tollway.database.base import Row
from tollway.database.postgres import Connection, PostgresDatabase, is_unreachable, reason
from tollway.ledger.base import genesis
from tollway.ledger.verify import QUERIES, VIOLATIONS_MAX, Violation, follows

_ROWS_PER_BLOCK = 10_000
_PATIENCE_MS = 30_000
"""Two leases: so long may a replica that has died keep what it holds."""

_OWN: Mapping[str, str] = {
    "held equals open holds": """
        SELECT 'account ' || a.id, 'held ' || a.held || '; its open holds and leases add up to '
               || h.total
          FROM accounts a JOIN (
            SELECT account_id, SUM(amount) AS total FROM (
              SELECT id AS account_id, 0 AS amount FROM accounts
              UNION ALL SELECT account_id, amount FROM holds WHERE state = 'open'
              UNION ALL SELECT account_id, amount FROM credit_leases) parts
             GROUP BY account_id) h ON h.account_id = a.id
         WHERE a.held <> h.total""",
    "hold has its charge": """
        SELECT 'hold ' || h.id, 'charged ' || h.charged || ' + ' || h.late || ' to '
               || h.account_id || ' at ' || COALESCE(h.closed_at, 0) || '; its entries: '
               || COALESCE(l.amount, 0) || ' of ' || COALESCE(l.account_id, 'none') || ' at '
               || COALESCE(l.created_at, 0)
          FROM holds h LEFT JOIN (
            SELECT ref, SUM(amount) AS amount, MIN(account_id) AS account_id,
                   MAX(account_id) AS other_account_id,
                   (array_agg(created_at ORDER BY seq DESC))[1] AS created_at,
                   COUNT(*) FILTER (WHERE kind = 'late_charge') AS late_entries,
                   COUNT(*) FILTER (WHERE kind = 'charge') AS entries
              FROM ledger WHERE kind IN ('charge', 'late_charge') GROUP BY ref) l ON l.ref = h.id
         WHERE (h.charged + h.late > 0 OR l.ref IS NOT NULL)
           AND (l.amount IS DISTINCT FROM -(h.charged + h.late)
                OR l.account_id IS DISTINCT FROM h.account_id
                OR l.other_account_id IS DISTINCT FROM h.account_id
                OR l.created_at IS DISTINCT FROM h.closed_at OR l.entries <> 1
                OR l.late_entries <> (h.charged > 0 AND h.late > 0)::int)""",
    "charge has its hold": """
        SELECT 'ledger ' || account_id || ' ' || seq, 'there is no hold ' || ref FROM ledger
         WHERE kind IN ('charge', 'late_charge')
           AND NOT EXISTS (SELECT 1 FROM holds WHERE holds.id = ledger.ref)""",
    "state of a hold": """
        SELECT 'hold ' || id, state || ' and charged ' || (charged + late) FROM holds
         WHERE state NOT IN ('open', 'settled', 'released', 'expired')
            OR (state = 'open' AND charged + late + shortfall > 0)
            OR (state = 'settled' AND charged + late = 0)
            OR (state = 'released' AND charged + late > 0)
            OR (state = 'open') <> (closed_at IS NULL)""",
    # After a late charge the usage is the later entry's.
    "charge says its usage": """
        SELECT 'usage ' || u.request_id, u.model || ': ' || u.prompt_tokens || ' + '
               || u.completion_tokens || ' tokens; the entry says ' || l.description
          FROM ledger l JOIN usage u ON u.request_id = l.ref JOIN holds h ON h.id = l.ref
         WHERE l.kind = CASE WHEN h.charged > 0 AND h.late > 0 THEN 'late_charge' ELSE 'charge' END
           AND l.description <>
               u.model || ': ' || u.prompt_tokens || ' + ' || u.completion_tokens || ' tokens'""",
    "refund within its charge": """
        SELECT 'ledger ' || r.account_id || ' ' || r.seq, 'refund of ' || r.amount || '; charge: '
               || COALESCE(-c.amount || ' of ' || c.account_id, 'none')
          FROM ledger r LEFT JOIN (
            SELECT ref, SUM(amount) AS amount, MIN(account_id) AS account_id FROM ledger
             WHERE kind IN ('charge', 'late_charge') GROUP BY ref) c ON c.ref = r.ref
         WHERE r.kind = 'refund' AND (c.ref IS NULL OR c.account_id <> r.account_id
               OR r.amount < 0 OR r.amount > -c.amount)""",
    "spent of a token": """
        SELECT 'token ' || t.id, 'spent ' || t.spent || ' and held ' || t.held
               || ', its holds were charged ' || COALESCE(h.charged, 0) || ' and hold '
               || COALESCE(h.open, 0)
          FROM tokens t LEFT JOIN (
            SELECT token_id, SUM(charged + late) AS charged,
                   SUM(amount) FILTER (WHERE state = 'open') AS open FROM holds
             WHERE token_id IN (SELECT id FROM tokens WHERE spend_cap IS NOT NULL)
             GROUP BY token_id) h ON h.token_id = t.id
         WHERE t.spend_cap IS NOT NULL AND (t.spent <> COALESCE(h.charged, 0)
               OR t.held <> COALESCE(h.open, 0))""",
    "checkpoint of an open hold": """
        SELECT 'checkpoint ' || hold_id, 'its hold has ended' FROM checkpoints
         WHERE hold_id IN (SELECT id FROM holds WHERE state <> 'open')""",
}

_MORE: tuple[tuple[str, str], ...] = (
    # These two are one row of a file. A hold that expired before anything was written down has no
    # usage: nothing is known of it.
    (
        "hold has its usage",
        """
        SELECT 'hold ' || h.id,
               CASE WHEN u.request_id IS NULL THEN 'there is no usage of it'
               ELSE 'its usage is of account ' || u.account_id || ', token ' || u.token_id
                    || ', made at ' || u.created_at END
          FROM holds h LEFT JOIN usage u ON u.request_id = h.id
         WHERE h.state <> 'open'
           AND NOT (h.state = 'expired' AND h.charged + h.late + h.shortfall = 0
                    AND u.request_id IS NULL)
           AND (u.request_id IS NULL OR u.account_id <> h.account_id OR u.token_id <> h.token_id
                OR u.created_at <> h.created_at)""",
    ),
    (
        "usage has its hold",
        """
        SELECT 'usage ' || request_id, 'there is no hold of it' FROM usage
         WHERE NOT EXISTS (SELECT 1 FROM holds WHERE holds.id = usage.request_id)""",
    ),
    (
        "foreign keys",
        """
        SELECT 'tokens ' || id, 'names a row of accounts that is not' FROM tokens
         WHERE account_id NOT IN (SELECT id FROM accounts)""",
    ),
    (
        "open hold of a live replica",
        f"""
        SELECT 'hold ' || h.id, 'its replica ' || COALESCE(h.instance, 'none') || ' has ended'
          FROM holds h LEFT JOIN instances i ON i.id = h.instance
         WHERE h.state = 'open' AND COALESCE(i.reaped, true)
        UNION ALL
        SELECT 'lease of ' || c.account_id, 'its replica ' || c.instance || ' has ended'
          FROM credit_leases c LEFT JOIN instances i ON i.id = c.instance
         WHERE COALESCE(i.reaped, true)
        UNION ALL
        SELECT 'hold ' || id, 'it should have expired at ' || expires_at FROM holds
         WHERE state = 'open' AND expires_at + {_PATIENCE_MS} < now_ms()""",  # noqa: S608 (ours)
    ),
    (
        "hash chain",
        """
        SELECT 'account ' || a.id, 'chain_head is not the hash of its last entry'
          FROM accounts a LEFT JOIN ledger l ON l.account_id = a.id AND l.seq = a.seq
         WHERE a.chain_head IS DISTINCT FROM
               COALESCE(l.hash, sha256(convert_to('tollway ledger ' || a.id, 'UTF8')))""",
    ),
)

_REFUSALS = (
    "ledger_refuses_change",
    "audit_refuses_change",
    "prices_refuse_change",
    "ledger_refuses_truncate",
    "audit_refuses_truncate",
    "prices_refuse_truncate",
    "accounts_tell",
    "tokens_tell",
    "prices_tell",
)
_CONSTRAINTS = (
    "accounts_check",
    "accounts_held_check",
    "accounts_pkey",
    "holds_check",
    "holds_pkey",
    "ledger_balance_after_check",
    "ledger_pkey",
    "ledger_ref_kind_key",
    "usage_pkey",
    "tokens_account_id_fkey",
    "tokens_held_check",
    "credit_leases_amount_check",
)


async def verify_postgres(database: PostgresDatabase) -> list[Violation]:
    async with database.snapshot() as connection:
        return await verify(connection)


async def verify(connection: Connection) -> list[Violation]:
    """Every violation, in the order of the checks; an empty list is a whole ledger. The connection
    is within a transaction that sees one snapshot."""
    found = [violation async for violation in _schema(connection)]
    for name, sql in _queries():
        found += await _run(connection, name, sql)
    async for violation in _broken_links(connection):
        found.append(violation)
        if sum(one.check == "hash chain" for one in found) >= VIOLATIONS_MAX:
            break
    return found


def _queries() -> list[tuple[str, str]]:
    shared = [(name, _OWN.get(name) or _translated(sql)) for name, sql in QUERIES]
    return [*shared, *_MORE]


def _translated(sql: str) -> str:
    """SQLite's `a IS NOT b` compares nulls as values; Postgres says it otherwise."""
    return re.sub(r"\bIS NOT (?!NULL\b)", "IS DISTINCT FROM ", sql)


async def _run(connection: Connection, check: str, sql: str) -> list[Violation]:
    try:
        async with connection.transaction():  # a savepoint: one check that fails ends no other
            rows = await connection.fetch(f"{sql} LIMIT {VIOLATIONS_MAX}")
    except Exception as error:
        if is_unreachable(error):
            raise
        return [Violation(check, "", f"could not be checked: {reason(error)}")]
    return [Violation(check, str(row), str(message)) for row, message in rows]


async def _schema(connection: Connection) -> AsyncIterator[Violation]:
    rows = await connection.fetch(
        "SELECT tgname FROM pg_trigger WHERE NOT tgisinternal AND tgenabled <> 'D'"
    )
    for name in sorted(set(_REFUSALS) - {row[0] for row in rows}):
        yield Violation("schema", f"trigger {name}", "is missing or does not fire")
    for name in sorted({row[0] for row in rows} - set(_REFUSALS)):
        yield Violation("schema", f"trigger {name}", "was added")
    rows = await connection.fetch("SELECT conname FROM pg_constraint WHERE convalidated")
    for name in sorted(set(_CONSTRAINTS) - {row[0] for row in rows}):
        yield Violation("schema", f"constraint {name}", "is missing")


# --- the hash chains ------------------------------------------------------------------------------

_LINKS = """
SELECT account_id, seq, kind, amount, balance_after, ref, description, created_at, hash
  FROM ledger WHERE (account_id, seq) > ($1, $2) ORDER BY account_id, seq LIMIT $3"""


async def _broken_links(connection: Connection) -> AsyncIterator[Violation]:
    account_id: str | None = None
    link = b""
    async for rows in _blocks(connection):
        for row in rows:
            if row[0] != account_id:
                account_id = row[0]
                link = genesis(row[0])
            link, whole = follows(link, tuple(row))
            if not whole:
                yield Violation(
                    "hash chain",
                    f"ledger {row[0]} {row[1]}",
                    "does not follow from the one before it",
                )
                link = row[8]  # the rows after it may be whole


async def _blocks(connection: Connection) -> AsyncIterator[Sequence[Row]]:
    after = ("", 0)
    while rows := await connection.fetch(_LINKS, *after, _ROWS_PER_BLOCK):
        yield rows
        after = rows[-1][0], rows[-1][1]

"""What the ledgers read and write alike, as rows: portable between SQLite and Postgres."""

import hashlib
import json
from typing import Any

import msgspec

from tollway.ledger.base import Attempt, ChargeEntry, Entry, Receipt, entry_bytes

ENTRIES = (
    "SELECT account_id, seq, kind, amount, balance_after, ref, description, created_at FROM ledger"
)

RECEIPT = """
SELECT usage.request_id, usage.account_id, usage.token_id, usage.model, usage.status, usage.source,
       usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, usage.reasoning_tokens,
       prices.id, prices.prompt_rate, prices.completion_rate,
       COALESCE(prices.cached_prompt_rate, prices.prompt_rate),
       COALESCE(prices.reasoning_rate, prices.completion_rate),
       holds.amount, holds.charged + holds.late, holds.shortfall, usage.remaining,
       usage.upstream, usage.upstream_id, usage.attempts, usage.client_request_id,
       usage.created_at, usage.first_token_ms, usage.total_ms, ledger.seq, ledger.hash
  FROM usage JOIN holds ON holds.id = usage.request_id JOIN prices ON prices.id = holds.price_id
  LEFT JOIN ledger ON ledger.ref = holds.id AND ledger.kind = 'charge'
 WHERE usage.request_id = ?"""


def entry_hash(before: bytes, entry: Entry) -> bytes:
    return hashlib.sha256(before + entry_bytes(entry)).digest()


def milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def entry_row(entry: Entry, hash_: bytes) -> tuple[Any, ...]:
    return (
        entry.account_id,
        entry.seq,
        entry.kind,
        entry.amount,
        entry.balance_after,
        entry.ref,
        entry.description,
        milliseconds(entry.created_at),
        hash_,
    )


def as_entry(row: tuple[Any, ...]) -> Entry:
    return Entry(*row[:7], created_at=row[7] / 1000)


def as_receipt(row: tuple[Any, ...]) -> Receipt:
    (
        *of_request,
        attempts,
        client_request_id,
        created_at_ms,
        first_token_ms,
        total_ms,
        seq,
        hash_,
    ) = row
    return Receipt(
        *of_request,
        attempts=msgspec.convert(json.loads(attempts), tuple[Attempt, ...]),
        client_request_id=client_request_id,
        created_at=created_at_ms / 1000,
        first_token_ms=first_token_ms,
        total_ms=total_ms,
        entry=None if seq is None else ChargeEntry(seq, hash_),
    )

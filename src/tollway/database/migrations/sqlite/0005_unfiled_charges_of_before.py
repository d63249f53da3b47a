"""What a crash of an older version left in `unfiled`: each charge gets the form that its rows have
since 0004. It was [hold, usage, capped, checkpointed, claim]."""
# yoyo has no types:
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false

import json
import sqlite3
from typing import Any

from yoyo import step

_PARTS_BEFORE = 5


def rewrite(connection: sqlite3.Connection) -> None:
    cursor = connection.cursor()
    cursor.execute("SELECT id, charges FROM unfiled")
    for id_, charges in cursor.fetchall():
        rewritten = json.dumps([_as_now(charge) for charge in json.loads(charges)])
        cursor.execute("UPDATE unfiled SET charges = ? WHERE id = ?", (rewritten.encode(), id_))


def _as_now(charge: list[Any]) -> list[Any]:
    if len(charge) != _PARTS_BEFORE:
        return charge
    (_, _, _, price_id, amount, charged, late, shortfall, state, _, closed_at), usage, *rest = (
        charge
    )
    request_id, account_id, token_id, model, status, source, *of_usage = usage
    input_tokens, output_tokens, remaining, upstream, upstream_id, attempts, *of_usage = of_usage
    client_request_id, created_at, first_token_ms, total_ms, cached, reasoning = of_usage
    now = [
        *(request_id, account_id, token_id, price_id, model, status, source, state),
        *(amount, charged + late, shortfall, remaining),
        *(input_tokens, output_tokens, cached, reasoning),
        *(upstream, upstream_id, attempts, client_request_id),
        *(created_at, closed_at, first_token_ms, total_ms),
    ]
    return [now, *rest]


steps = [step(rewrite)]

"""Databases of before: what `ledger_batch` pays late gets the bound that 0002_ledger.sql has now,
what the token's spend cap leaves. Replicas of before and of now may both run with it."""
# yoyo has no types:
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false

from typing import Any

from yoyo import step

_BEFORE = "LEAST(LEAST(op.cost, granted) - COALESCE(hold.charged, 0), available));"
_NOW = """\
LEAST(LEAST(op.cost, granted) - COALESCE(hold.charged, 0), available,
            (SELECT spend_cap - spent - held FROM tokens WHERE id = op.token)));"""


def bound_late_charges(connection: Any) -> None:
    """Any: a connection of psycopg, as yoyo gives it."""
    cursor = connection.cursor()
    cursor.execute("SELECT pg_get_functiondef('ledger_batch(text, json)'::regprocedure)")
    (definition,) = cursor.fetchone()
    if _BEFORE in definition:  # else it is a new database
        cursor.execute(definition.replace(_BEFORE, _NOW))


steps = [step(bound_late_charges)]

"""Files of before: their CHECKs get the form that 0001_initial.sql has now.

What is allowed does not change, so no row need be looked at, and with millions of them that counts.
SQLite has no ALTER for a CHECK, and writing its schema is the way that its documentation names
(lang_altertable, "Making Other Kinds Of Table Schema Changes").
"""
# yoyo has no types:
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false

import sqlite3
from typing import Any

from yoyo import step

_WRITTEN_OUT = {
    "state IN ('settled', 'released', 'expired')": (
        "state = 'settled' OR state = 'released' OR state = 'expired'"
    ),
    "kind IN ('grant', 'top_up', 'charge', 'refund', 'adjustment')": (
        "kind = 'charge' OR kind = 'grant' OR kind = 'top_up' OR kind = 'refund'"
        " OR kind = 'adjustment'"
    ),
    "status IN ('completed', 'interrupted', 'failed')": (
        "status = 'completed' OR status = 'interrupted' OR status = 'failed'"
    ),
    "source IN ('upstream', 'counted', 'checkpoint')": (
        "source = 'upstream' OR source = 'counted' OR source = 'checkpoint'"
    ),
}


def write_out_checks(connection: sqlite3.Connection) -> None:
    cursor = connection.cursor()
    cursor.execute("SELECT sql, name FROM sqlite_master WHERE type = 'table'")
    changed: list[tuple[str, Any]] = []
    for sql, name in cursor.fetchall():
        after = sql
        for check, written_out in _WRITTEN_OUT.items():
            after = after.replace(f"CHECK ({check})", f"CHECK ({written_out})")
        if after != sql:
            changed.append((after, name))
    if not changed:  # a new file; some builds of SQLite would refuse what follows
        return
    cursor.execute("PRAGMA schema_version")
    (version,) = cursor.fetchone()
    cursor.execute("PRAGMA writable_schema = ON")
    cursor.executemany(
        "UPDATE sqlite_master SET sql = ? WHERE type = 'table' AND name = ?", changed
    )
    cursor.execute(f"PRAGMA schema_version = {version + 1}")
    cursor.execute("PRAGMA writable_schema = OFF")


steps = [step(write_out_checks)]

"""Files of before: the ledger's CHECK gets the form that 0001_initial.sql has now.

What is allowed does not change, so no row need be looked at, and with millions of them that counts.
SQLite has no ALTER for a CHECK, and writing its schema is the way that its documentation names
(lang_altertable, "Making Other Kinds Of Table Schema Changes").
"""
# yoyo has no types:
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false

import sqlite3

from yoyo import step

_BEFORE = "kind IN ('grant', 'top_up', 'charge', 'refund', 'adjustment')"
_NOW = (
    "kind = 'charge' OR kind = 'grant' OR kind = 'top_up' OR kind = 'refund' OR kind = 'adjustment'"
)


def write_out_kinds(connection: sqlite3.Connection) -> None:
    cursor = connection.cursor()
    cursor.execute("SELECT sql FROM sqlite_master WHERE type = 'table' AND name = 'ledger'")
    (sql,) = cursor.fetchone()
    if _BEFORE not in sql:  # a new file; some builds of SQLite would refuse what follows
        return
    cursor.execute("PRAGMA schema_version")
    (version,) = cursor.fetchone()
    cursor.execute("PRAGMA writable_schema = ON")
    cursor.execute(
        "UPDATE sqlite_master SET sql = ? WHERE type = 'table' AND name = 'ledger'",
        (sql.replace(_BEFORE, _NOW),),
    )
    cursor.execute(f"PRAGMA schema_version = {version + 1}")
    cursor.execute("PRAGMA writable_schema = OFF")


steps = [step(write_out_kinds)]

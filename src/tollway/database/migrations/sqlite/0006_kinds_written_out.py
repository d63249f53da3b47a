"""Files of before: the ledger's CHECK gets the form that 0001_initial.sql has now.

What is allowed does not change, so no row need be looked at, and with millions of them that counts.
SQLite has no ALTER for a CHECK, and writing its schema is the way that its documentation names
(lang_altertable, "Making Other Kinds Of Table Schema Changes"). Builds of it that let nobody do
that get a new table.
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
    (before,) = cursor.fetchone()
    if _BEFORE not in before:  # a new file
        return
    now = before.replace(_BEFORE, _NOW)
    try:
        change(cursor, now)
    except sqlite3.OperationalError:
        rebuild(cursor, now)


def change(cursor: sqlite3.Cursor, sql: str) -> None:
    cursor.execute("PRAGMA schema_version")
    (version,) = cursor.fetchone()
    cursor.execute("PRAGMA writable_schema = ON")
    cursor.execute(
        "UPDATE sqlite_master SET sql = ? WHERE type = 'table' AND name = 'ledger'", (sql,)
    )
    cursor.execute(f"PRAGMA schema_version = {version + 1}")
    cursor.execute("PRAGMA writable_schema = OFF")


def rebuild(cursor: sqlite3.Cursor, sql: str) -> None:
    cursor.execute("SELECT sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'ledger'")
    triggers = [trigger for (trigger,) in cursor.fetchall()]
    cursor.execute("ALTER TABLE ledger RENAME TO ledger_before")
    cursor.execute(sql)
    cursor.execute("INSERT INTO ledger SELECT * FROM ledger_before ORDER BY account_id, seq")
    cursor.execute("DROP TABLE ledger_before")  # and its triggers
    for trigger in triggers:
        cursor.execute(trigger)


steps = [step(write_out_kinds)]

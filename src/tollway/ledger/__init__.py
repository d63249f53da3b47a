"""Credit: held before a request runs, charged for what it used, never lost or spent twice.

base.py         what a ledger promises, and its values; begin here
sqlite.py       the ledger in one process over one SQLite file
charges.py      how charges come to rest in that file
idempotency.py  Idempotency-Keys in that file
verify.py       recomputes its books
postgres/       the ledger of many replicas over one Postgres
rows.py         the rows that both read and write alike
signing.py      the key that receipts are signed with
"""

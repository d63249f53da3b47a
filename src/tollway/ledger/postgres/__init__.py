"""The ledger of many replicas over one Postgres: `ledger.py` says how.

ledger.py      holds, settles and tells what is known of an account
operations.py  what it says to the database's `ledger_batch`, and what the answers mean
lanes.py       how operations reach the database, and what happens while it is away
leases.py      what a replica knows of an account, and when it leases more of its credit
purses.py      asks for leases, gives them back
additions.py   entries that are no charge
keys.py        Idempotency-Keys
verify.py      recomputes the books
move.py        brings them here from SQLite
"""

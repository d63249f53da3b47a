"""The ledger of many replicas over one Postgres: `ledger.py` says how."""

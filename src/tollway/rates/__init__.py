"""How many requests in a minute, and how many at a time.

base.py         what a limiter promises
memory.py       counts in this process
valkey.py       counts over all replicas; by itself while Valkey is away
valkey.lua      what Valkey runs
link.py         the connection to Valkey
shares.py       this replica's part of a limit while Valkey is away
concurrency.py  how many requests of each account are running
"""

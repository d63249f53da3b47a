"""Several processes on one port of one machine: `tollway serve --workers N`.

The supervisor (`supervisor.py`) serves nothing itself. It starts the workers (`worker.py`), each a
Tollway of its own with a folder of its own in the data directory, starts one again that died, and
passes signals on. It also runs the embedded model, once for all of them. What the two tell one
another is in `leash.py`.

Each worker listens on the port with a socket of its own (SO_REUSEPORT), so that the kernel spreads
connections. One socket for all would be served by whoever wakes first: of 64 connections that are
kept, four workers took 45, 17, 2 and 0, and with a socket each 19, 16, 16 and 13.
"""

"""What the operator's commands do, and how they reach the server that runs.

operations.py  each operation: its arguments, what it does, its entry in the audit
control.py     the control socket
upstreams.py   an upstream as its operator sees it
"""

"""Whole lives of Tollway in one thread and no time: the real gateway between a hostile upstream
and hostile clients, with crashes, and an auditor that recomputes every charge from what truly went
over the wires.

    python -m tests.simulator --seed 7              replays one schedule and tells its story
    python -m tests.simulator --schedules 100000    as before a release

One integer makes a schedule. Nothing in it waits or races: time is a number that jumps to the next
timer (`loop.py`), sockets are byte queues (`network.py`), the writer of the database runs between
two steps of the loop instead of in its thread (`process.py`). A crash drops the loop between any
two of its steps, with all that was in memory.
"""

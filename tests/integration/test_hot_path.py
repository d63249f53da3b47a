"""A request, its charge and a chunk of a stream do no more than is written down here.

`tests/support/counting.py` counts them on the real server: the counts do not depend on the machine
or its load, so a change of code is what changes them. When one is over its limit, look where it
went with

    python -m tests.support.counting --by-function

and if the work is worth its place on every request, raise the number in `RECORDED` in the same
commit and say in its message what for. When one has fallen, lower it, or the next rise is not seen.
"""

import json
import subprocess
import sys

import pytest

# Calls of functions in Python and of functions in C, and bytecode instructions, on CPython 3.11.
# `request` and `chunk` are on the event loop, `charge` on the writer's thread, alone in
# its batch and filed with the others.
RECORDED = {
    ("request", "calls"): 103,
    ("request", "c_calls"): 80,
    ("request", "instructions"): 3214,
    ("charge", "calls"): 34,
    ("charge", "c_calls"): 33,
    ("charge", "instructions"): 829,
    ("chunk", "calls"): 10,
    ("chunk", "c_calls"): 10,
    ("chunk", "instructions"): 327,
}
# Another version of Python compiles to other instructions, some 10 to 20 % more or fewer.
SLACK = 1.15 if sys.version_info[:2] == (3, 11) else 1.5

# The request's body: decoded, written to compare; the model's name for the upstream. Its reply:
# decoded and written. A charge: what it is kept as, and is filed from.
JSON_PASSES = {"request": 5, "charge": 3, "chunk": 0}


@pytest.fixture(scope="module")
def counted() -> dict[str, dict[str, int]]:
    """In a process of its own: it traces, and so does coverage."""
    command = [sys.executable, "-m", "tests.support.counting", "--json"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.parametrize(("what", "measure"), RECORDED)
def test_the_hot_path_does_no_more_than_is_recorded(
    counted: dict[str, dict[str, int]], what: str, measure: str
) -> None:
    number, recorded = counted[what][measure], RECORDED[what, measure]

    assert 0 < number <= recorded * SLACK, (
        f"A {what} now makes {number} {measure}; {recorded} are recorded and "
        f"{recorded * SLACK:.0f} are allowed. The head of {__file__} says what to do."
    )


@pytest.mark.parametrize("what", JSON_PASSES)
def test_json_is_read_and_written_no_oftener_than_it_must_be(
    counted: dict[str, dict[str, int]], what: str
) -> None:
    assert counted[what]["json_passes"] <= JSON_PASSES[what]


@pytest.mark.parametrize("what", JSON_PASSES)
def test_nothing_is_logged_on_the_hot_path(counted: dict[str, dict[str, int]], what: str) -> None:
    assert counted[what]["logging_calls"] == 0

"""Processes that really die, and a disk that is really full."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.ledger.books import Books
from tests.unit.ledger.full_disk import IN_FLIGHT
from tests.unit.ledger.under_load import CREDITS

_ROOT = Path(__file__).parents[3]
_MAY_MOUNT = ("unshare", "--map-root-user", "--mount")
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 (a place of its own is made in it)
_FILLED_BYTES_MAX = 256 * 1024 * 1024  # of memory; a container has 64 MiB of it


def _python(*arguments: str) -> list[str]:
    return [sys.executable, "-m", *arguments]


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(_ROOT / "src"), str(_ROOT)])}


def _result(command: list[str]) -> dict[str, object]:
    done = subprocess.run(
        command, cwd=_ROOT, env=_environment(), capture_output=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


@pytest.mark.slow
def test_death_at_any_step_loses_no_charge_and_makes_none_twice(tmp_path: Path) -> None:
    found = _result(_python("tests.unit.ledger.crash_points", str(tmp_path)))

    points, told = found.pop("points"), found.pop("told")
    assert isinstance(points, int)
    assert isinstance(told, int)
    assert points > 80
    assert told > points
    assert found == {"lost": 0, "wrong": 0, "violations": 0, "left behind": 0}


@pytest.mark.slow
async def test_kill_9_at_random_instants_under_load(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    data_dir.mkdir()

    told = _killed_under_load(data_dir, rounds=6, seed=7)

    books = await Books(data_dir).open()
    charged = dict(await books.database.fetch("SELECT id, charged FROM holds"))
    assert {id_: charged.get(id_) for id_ in told} == told
    assert await books.balance("acc_1") == CREDITS - sum(charged.values())
    assert books.verify() == []
    await books.close()


def _killed_under_load(data_dir: Path, *, rounds: int, seed: int) -> dict[str, int]:
    """What the processes said was charged before they were killed."""
    chance = random.Random(seed)
    told: dict[str, int] = {}
    for round_ in range(rounds):
        command = _python("tests.unit.ledger.under_load", str(data_dir), str(round_))
        with subprocess.Popen(
            command, cwd=_ROOT, env=_environment(), stdout=subprocess.PIPE
        ) as child:
            assert child.stdout is not None
            lines = [child.stdout.readline() for _ in range(chance.randrange(1, 400))]
            child.send_signal(signal.SIGKILL)
            lines += child.stdout.readlines()
        told |= {id_: int(charged) for id_, charged in (line.decode().split() for line in lines)}
    return told


def test_a_log_that_cannot_grow_loses_no_charge(tmp_path: Path) -> None:
    found = _result(_python("tests.unit.ledger.full_disk", str(tmp_path), "limit"))

    assert found.pop("fault") is not None
    assert found == _all_charged(ballast_meanwhile=True)


def test_a_full_disk_loses_no_charge(on_a_small_disk: list[str]) -> None:
    found = _result(on_a_small_disk)

    assert found.pop("fault") is not None
    assert found == _all_charged(ballast_meanwhile=False)


@pytest.fixture
def on_a_small_disk(tmp_path: Path) -> Iterator[list[str]]:
    """The command, on a disk of its own or, in a container that may mount none, on the small one
    that it has for shared memory."""
    if _may_mount():
        yield [*_MAY_MOUNT, *_python("tests.unit.ledger.full_disk", str(tmp_path), "mounted")]
        return
    assert _SHARED_MEMORY.is_dir(), f"nothing may be mounted and there is no {_SHARED_MEMORY}"
    free = shutil.disk_usage(_SHARED_MEMORY).free
    assert free < _FILLED_BYTES_MAX, f"nothing may be mounted and {_SHARED_MEMORY} is too large"
    with tempfile.TemporaryDirectory(dir=_SHARED_MEMORY) as directory:
        yield _python("tests.unit.ledger.full_disk", directory, "small")


def _may_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    mount = [*_MAY_MOUNT, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(mount, capture_output=True, check=False).returncode == 0


def _all_charged(*, ballast_meanwhile: bool) -> dict[str, object]:
    return {
        "answered": 3 * IN_FLIGHT,
        "refused meanwhile": True,
        "ballast meanwhile": ballast_meanwhile,
        "ballast after": True,
        "holds": IN_FLIGHT + 1,
        "charged": 3 * IN_FLIGHT + 5,
        "violations": 0,
    }

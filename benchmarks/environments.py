"""What the benchmarks run beside Tollway, each in an environment of its own, in the temporary
folder and exactly as its lock file says; and Tollway itself on another Python."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.processes import BUILD

ROOT = Path(__file__).parent.parent
PEERS = Path(__file__).parent / "peers"
BENCH_LOCK = ROOT / "requirements-bench.lock"
NEWER_PYTHON = "python3.14"


class NotHere(Exception):
    """It cannot be had or run on this machine; says why."""


def tools() -> Path:
    """The folder of the programs of requirements-bench.lock. Raises `NotHere`."""
    return _python(BENCH_LOCK)


def newer_python() -> Path:
    """The folder of the programs of an environment in which Tollway runs on `NEWER_PYTHON`. Raises
    `NotHere`, also where there is no such Python on the PATH."""
    # Tollway is installed editable, so the environment belongs to this clone.
    of_clone = hashlib.sha256(str(ROOT).encode()).hexdigest()[:8]
    name = f"tollway-{NEWER_PYTHON}-{of_clone}"
    folder = _folder(name, ROOT / "requirements.lock")
    if not (folder / "installed").exists():
        install = _new_environment(folder, NEWER_PYTHON)
        _run([*install, "--require-hashes", "-r", str(ROOT / "requirements.lock")])
        _run([*install, "--no-deps", "--editable", str(ROOT)])
        (folder / "installed").touch()
    return folder / "bin"


def python_peer(name: str) -> Path:
    """The folder of its programs, from `peers/NAME.lock`. Raises `NotHere`."""
    return _python(PEERS / f"{name}.lock")


def node_peer(name: str) -> Path:
    """Its `node_modules`, from `peers/NAME/package-lock.json`. Raises `NotHere`."""
    folder = _folder(name, PEERS / name / "package-lock.json")
    if not (folder / "installed").exists():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(PEERS / name, folder)
        npm = ["npm", "ci", "--silent", "--ignore-scripts", "--no-audit", "--no-fund"]
        _run([*npm, "--prefix", str(folder)])
        (folder / "installed").touch()
    return folder / "node_modules"


def _python(lock: Path) -> Path:
    folder = _folder(lock.stem, lock)
    if not (folder / "installed").exists():
        _run([*_new_environment(folder, sys.executable), "--require-hashes", "-r", str(lock)])
        (folder / "installed").touch()
    return folder / "bin"


def _new_environment(folder: Path, python: str) -> list[str]:
    """The command that installs into it."""
    shutil.rmtree(folder, ignore_errors=True)
    _run([python, "-m", "venv", "--without-pip", str(folder)])
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin/python"), "install"]
    return [*pip, "--quiet", "--disable-pip-version-check"]


def _folder(name: str, lock: Path) -> Path:
    if not lock.exists():
        raise NotHere(f"there is no {lock.name}")
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()[:8]
    return BUILD / "peers" / f"{name}-{digest}"


def _run(command: list[str]) -> None:
    try:
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise NotHere(f"there is no {command[0]} here") from None
    if ran.returncode:
        words = (ran.stderr or ran.stdout).strip().splitlines()
        raise NotHere(f"its installation failed: {words[-1] if words else ran.returncode}")

"""The OpenAI SDK for Node, installed once for each lock file and run as its users run it."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent
RUN_SECONDS = 60
INSTALL_SECONDS = 300


def run_node(script: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs an ES module that may `import OpenAI from "openai"`; `env` is added to the environment.

    Node looks for packages beside a script, so the script is copied next to them. Its exit status
    is the caller's to judge.
    """
    modules = installed()
    with tempfile.TemporaryDirectory(dir=modules) as folder:
        copy = Path(shutil.copy(script, folder))
        return subprocess.run(
            [_program("node"), str(copy)],
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS,
            check=False,
        )


def installed() -> Path:
    """The folder that holds `node_modules` for the present lock file; `npm ci` fills it the first
    time."""
    folder = _cache() / hashlib.sha256((HERE / "package-lock.json").read_bytes()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder / "lock"):
        if not (folder / "complete").exists():
            _install(folder)
            (folder / "complete").touch()
    return folder


def _install(folder: Path) -> None:
    for name in ("package.json", "package-lock.json"):
        shutil.copy(HERE / name, folder)
    done = subprocess.run(
        [_program("npm"), "ci", "--no-audit", "--no-fund", "--ignore-scripts"],
        cwd=folder,
        check=False,
        capture_output=True,
        text=True,
        timeout=INSTALL_SECONDS,
    )
    # A registry that cannot be reached, or whose certificate is not trusted: only npm knows.
    assert done.returncode == 0, f"npm ci failed.\n{done.stderr}"


def _program(name: str) -> str:
    # The one that came with the development dependencies comes before the machine's own.
    beside = shutil.which(name, path=str(Path(sys.executable).parent))
    found = beside or shutil.which(name)
    assert found is not None, f"{name} is not installed: the development dependencies bring it"
    return found


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "tollway-tests" / "node"


@contextmanager
def _alone(lock: Path) -> Generator[None]:
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield

"""Builds and pins the programs of a benchmark, and reads what a process tree has used."""

import contextlib
import os
import resource
import shlex
import socket
import subprocess
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

NATIVE = Path(__file__).parent / "native"
BUILD = Path(tempfile.gettempdir()) / "tollway-benchmarks"
GATEWAY_CORE = "0"
LOAD_CORE = "1"
FILES_MAX = 20_000
STOP_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Used:
    """Memory of a process and all below it. `proportional_bytes` counts a shared page once."""

    resident_bytes: int
    proportional_bytes: int


def used(pid: int) -> Used:
    resident, proportional = 0, 0
    for process in _tree(pid):
        with contextlib.suppress(psutil.NoSuchProcess, OSError):
            memory = process.memory_full_info()
            resident += memory.rss
            proportional += memory.pss
    return Used(resident, proportional)


def cpu_seconds(pid: int) -> float:
    """Of a process and all below it, threads included, to the nanosecond."""
    seconds = 0.0
    for process in _tree(pid):
        with contextlib.suppress(OSError):
            seconds += time.clock_gettime(_cpu_clock(process.pid))
    return seconds


def _tree(pid: int) -> list[psutil.Process]:
    return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]


def _cpu_clock(pid: int) -> int:
    """As clock_getcpuclockid(3) has it: nanoseconds, where /proc counts in ticks of 10 ms."""
    return (~pid << 3) | 2


def built(name: str) -> str:
    """The path of a C program of `native/`, compiled if its source is newer."""
    source, program = NATIVE / f"{name}.c", BUILD / name
    BUILD.mkdir(exist_ok=True)
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        subprocess.run(["gcc", "-O2", "-o", str(program), str(source)], check=True)
    return str(program)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def raise_file_limit() -> None:
    """A thousand open streams are two thousand sockets in a gateway; children inherit this."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_MAX if hard == resource.RLIM_INFINITY else min(FILES_MAX, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def take_priority(nice: int) -> None:
    """On a shared machine: below 0 (root's) the neighbours wait for us, and not we for them.
    Children inherit this. Linux may weigh whole sessions against one another, so both are told."""
    os.setpriority(os.PRIO_PROCESS, 0, nice)
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(nice))


class NotStarted(SystemExit):
    """With what it printed last."""


@contextlib.contextmanager
def running(
    command: Sequence[str],
    *,
    core: str,
    port: int,
    log: Path,
    seconds: float = 30,
    env: Mapping[str, str] | None = None,
) -> Generator[subprocess.Popen[bytes]]:
    """Pinned to one core, from the moment its port accepts; ended with SIGTERM, and with SIGKILL
    where that fails. Raises `NotStarted`."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["taskset", "-c", core, *command],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
        )
    try:
        _wait_for(process, port, log, seconds)
        yield process
    finally:
        _end(process)


def on_load_core(
    command: Sequence[str], env: Mapping[str, str] | None = None, core: str = LOAD_CORE
) -> str:
    """Runs a load generator to its end and returns what it printed."""
    ran = subprocess.run(
        ["taskset", "-c", core, *command],
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        raise SystemExit(f"{shlex.join(command)} failed:\n{ran.stdout}{ran.stderr}")
    if ran.stderr:
        print(ran.stderr[:1000])
    return ran.stdout


def _wait_for(process: subprocess.Popen[bytes], port: int, log: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise NotStarted(f"{process.args} did not start:\n{log.read_text(errors='replace')[-2000:]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    children = (
        psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    )
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()

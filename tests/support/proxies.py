"""nginx and HAProxy on the loopback, as deploy/ configures them but for the addresses."""

import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support.ports import free_port

DEPLOY = Path(__file__).parents[2] / "deploy"
START_SECONDS_MAX = 10.0


@contextmanager
def nginx(ports: Sequence[int]) -> Generator[int]:
    """The port on which it serves the replicas at `ports`."""
    port = free_port()
    folder = Path(tempfile.mkdtemp(prefix="tollway-nginx-"))
    config = _addressed(DEPLOY / "nginx.conf", ports)
    config = config.replace("listen 8000;", f"listen 127.0.0.1:{port};")
    config = re.sub(r"/\w+/nginx", f"{folder}/nginx", config)
    path = folder / "nginx.conf"
    path.write_text(config)
    command = ["/usr/sbin/nginx", "-c", str(path), "-g", "daemon off;", "-e", "stderr"]
    with _running(command, port, folder):
        yield port


@contextmanager
def haproxy(ports: Sequence[int]) -> Generator[int]:
    """The port on which it serves the replicas at `ports`."""
    port = free_port()
    folder = Path(tempfile.mkdtemp(prefix="tollway-haproxy-"))
    config = _addressed(DEPLOY / "haproxy.cfg", ports)
    path = folder / "haproxy.cfg"
    path.write_text(config.replace("bind :8000", f"bind 127.0.0.1:{port}"))
    with _running(["/usr/sbin/haproxy", "-db", "-f", str(path)], port, folder):
        yield port


def _addressed(path: Path, ports: Sequence[int]) -> str:
    config = path.read_text()
    for number, port in enumerate(ports, 1):
        name = f"tollway-{number}:8080"
        assert config.count(name) == 1, f"{path.name} has no {name}"
        config = config.replace(name, f"127.0.0.1:{port}")
    assert not re.search(r"tollway-\d:8080", config)
    return config


@contextmanager
def _running(command: Sequence[str], port: int, folder: Path) -> Generator[None]:
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + START_SECONDS_MAX
        while not _accepts(port):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.01)
        yield
    finally:
        process.terminate()
        process.wait(10)
        shutil.rmtree(folder)


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0

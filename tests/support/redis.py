"""A real Redis on the loopback: started on a free port, stopped, killed, started again."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import valkey
from tests.support.ports import free_port
from tests.support.users import ordinary_user

START_SECONDS_MAX = 20.0


class RedisServer:
    def __init__(self, folder: Path, password: str | None, arguments: Sequence[str]) -> None:
        self._folder = folder
        self._password = password
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None
        self.answers = False
        self.port = free_port()

    @property
    def url(self) -> str:
        secret = "" if self._password is None else f":{self._password}@"
        return f"redis://{secret}127.0.0.1:{self.port}/0"

    def start(self) -> None:
        user = ordinary_user()
        if user is not None:
            os.chown(self._folder, user.pw_uid, user.pw_gid)
        password = [] if self._password is None else ["--requirepass", self._password]
        self._process = subprocess.Popen(
            [
                "redis-server",
                *("--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self._folder)),
                *("--save", "", "--appendonly", "no", *password, *self._arguments),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            user=None if user is None else user.pw_uid,
            group=None if user is None else user.pw_gid,
        )
        deadline = time.monotonic() + START_SECONDS_MAX
        while not self._answers():
            assert self._process.poll() is None, "redis-server did not start"
            assert time.monotonic() < deadline, "redis-server does not answer"
            time.sleep(0.01)
        self.answers = True

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                client.time()
        except valkey.ConnectionError:
            return False
        return True

    def client(self) -> Any:
        return valkey.Valkey.from_url(self.url, decode_responses=True)  # pyright: ignore[reportUnknownMemberType]

    def pause(self) -> None:
        """SIGSTOP: it keeps its connections and answers nothing."""
        self.answers = False
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)
        self.answers = True

    def kill(self) -> None:
        """kill -9. It forgets everything."""
        self.answers = False
        self._signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait()
        self._process = None

    def _signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    @property
    def runs(self) -> bool:
        return self._process is not None


@contextmanager
def a_redis(*arguments: str, password: str | None = None) -> Generator[RedisServer]:
    folder = Path(tempfile.mkdtemp(prefix="tollway-redis-"))
    server = RedisServer(folder, password, arguments)
    try:
        server.start()
        yield server
    finally:
        if server.runs:
            server.kill()
        shutil.rmtree(folder)

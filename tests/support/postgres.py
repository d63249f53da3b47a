"""A real PostgreSQL 15 on loopback, which ends with the tests, and a database of its own for each
of them, copied from one that has been migrated.

Postgres refuses to run as root, so there it runs as `postgres` or `nobody`.
"""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psycopg
from tests.support.scratch import scratch_directory
from tests.support.users import ordinary_user

from tollway.database.rights import migrate

MIGRATOR = "tollway_owner"
SERVER = "tollway_server"
PASSWORD = "s3cret/of:tests"
_QUOTED = "s3cret%2Fof%3Atests"
_TEMPLATE = "template_of_tests"
_START_SECONDS_MAX = 30.0

_FAST = ("-c", "fsync=off", "-c", "full_page_writes=off")
"""For tests that do not stop the server."""


class PostgresServer:
    """A context manager. `durable` keeps what was committed when the server is killed."""

    def __init__(self, *, durable: bool = False) -> None:
        self.port = _free_port()
        self._options = [] if durable else list(_FAST)
        self._user = ordinary_user()
        # A short path: that of a socket is limited. What syncs each commit does so to a disk.
        memory = None if durable else scratch_directory()
        place = memory or "/tmp"  # noqa: S108 (one's own is made in it)
        self._folder = Path(tempfile.mkdtemp(prefix="tollway-pg-", dir=place))
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = 0
        self._log = (self._folder / "log").open("ab")

    def __enter__(self) -> "PostgresServer":
        if self._user is not None:
            os.chown(self._folder, self._user.pw_uid, self._user.pw_gid)
        self._run("initdb", "-D", self._data, "-A", "trust", "-U", "postgres", "-E", "UTF8",
                  "--locale=C.UTF-8", "--no-sync")  # fmt: skip
        # Only who connects over TCP has to show a password, as from another machine.
        hba = "local all postgres trust\nhost all postgres 127.0.0.1/32 trust\n"
        hba += "host all all 127.0.0.1/32 scram-sha-256\n"
        (self._folder / "data" / "pg_hba.conf").write_text(hba)
        self.start()
        with self.connect() as connection:
            for role in (MIGRATOR, SERVER):
                connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'".encode())
            connection.execute(f"CREATE DATABASE {_TEMPLATE} OWNER {MIGRATOR}".encode())
        migrate(self.url(_TEMPLATE, MIGRATOR), SERVER)
        return self

    def __exit__(self, *raised: object) -> None:
        self.stop(signal.SIGQUIT)
        self._log.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def start(self) -> None:
        self._process = subprocess.Popen(
            [
                *self._as_user(),
                _binary("postgres"),
                "-D",
                self._data,
                *("-c", f"port={self.port}", "-c", "listen_addresses=127.0.0.1"),
                *("-c", f"unix_socket_directories={self._folder}"),
                *("-c", "max_connections=200", "-c", "shared_buffers=64MB"),
                *self._options,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._log,
        )
        deadline = time.monotonic() + _START_SECONDS_MAX
        while True:
            try:
                self.connect().close()
                return
            except psycopg.OperationalError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise AssertionError((self._folder / "log").read_text()) from None
                time.sleep(0.05)

    def stop(self, number: int = signal.SIGQUIT) -> None:
        """At once, as in a crash: SIGQUIT is Postgres's immediate shutdown."""
        if self._process is None:
            return
        self._process.send_signal(number)
        self._process.wait(30)
        self._process = None

    def connect(self, database: str = "postgres") -> "psycopg.Connection[tuple[object, ...]]":
        """As the superuser, each statement committed at once."""
        return psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            user="postgres",
            dbname=database,
            autocommit=True,
            connect_timeout=5,
        )

    def new_database(self, *, empty: bool = False) -> str:
        """Its name; migrated unless it is to be empty."""
        self._databases += 1
        name = f"test_{os.getpid()}_{self._databases}"
        template = "template0" if empty else _TEMPLATE
        with self.connect() as connection:
            connection.execute(
                f"CREATE DATABASE {name} TEMPLATE {template} OWNER {MIGRATOR}".encode()
            )
        return name

    def drop_database(self, name: str) -> None:
        with self.connect() as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)".encode())

    def url(self, database: str, role: str = SERVER) -> str:
        return f"postgresql://{role}:{_QUOTED}@127.0.0.1:{self.port}/{database}"

    @property
    def _data(self) -> str:
        return str(self._folder / "data")

    def _as_user(self) -> list[str]:
        """It also ends when the tests are killed."""
        command = ["setpriv", "--pdeathsig=QUIT"]
        if self._user is not None:
            uid, gid = str(self._user.pw_uid), str(self._user.pw_gid)
            command += [f"--reuid={uid}", f"--regid={gid}", "--clear-groups"]
        return command

    def _run(self, program: str, *arguments: str) -> None:
        command: Sequence[str] = [*self._as_user(), _binary(program), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=self._folder)
        assert done.returncode == 0, done.stderr


def _binary(name: str) -> str:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    path = str(found[-1]) if found else shutil.which(name)
    assert path is not None, "PostgreSQL is not installed: `apt-get install postgresql`"
    return path


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]

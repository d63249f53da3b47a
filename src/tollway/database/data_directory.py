"""The data directory: who has it, and whether it can be used. One process at a time does, whichever
database it keeps its books in."""

import contextlib
import fcntl
import os
import time
from collections.abc import Generator
from pathlib import Path

from tollway.errors import StartError

LOCK_WAIT_SECONDS = 5.0

DATABASE_FILE = "tollway.db"
MOVED_FILE = "moved-to-postgres.db"
"""What the file is called once its books are in Postgres."""
AS_THE_SERVER = "Run this as the user of the server, or with sudo"


class DataDirectoryLock:
    """One process at a time has a data directory. The operating system gives the lock back when the
    process dies."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / "tollway.lock"
        self._file: int | None = None

    def acquire(self, wait_seconds: float = LOCK_WAIT_SECONDS) -> None:
        """Raises `StartError` when another process still has it after `wait_seconds`."""
        deadline = time.monotonic() + wait_seconds
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    owner = os.read(descriptor, 32).decode(errors="replace").strip()
                    os.close(descriptor)
                    raise StartError(
                        f"Another Tollway (process {owner or 'unknown'}) uses the data directory "
                        f"{self._path.parent}. Stop it, or give this one its own with --data-dir."
                    ) from None
                time.sleep(0.05)
        self._file = descriptor
        with contextlib.suppress(OSError):  # only a hint, and a full disk has no room for it
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


@contextlib.contextmanager
def own_data_directory(data_dir: Path) -> Generator[None]:
    """Makes it where it is not there. Raises `StartError` where it cannot be used, or another
    process has it."""
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = DataDirectoryLock(data_dir)
        lock.acquire()
    except OSError as error:
        raise unusable(data_dir, error) from error
    try:
        yield
    finally:
        lock.release()


def look_into(data_dir: Path) -> None:
    """Raises `StartError` where this user may not look into it. It need not be there yet."""
    try:
        with contextlib.suppress(FileNotFoundError):
            (data_dir / DATABASE_FILE).stat()
    except OSError as error:
        raise unusable(data_dir, error) from error


def require_not_moved(data_dir: Path) -> None:
    """Raises `StartError` where a new file would stand beside books that moved to Postgres: with
    the configuration of before, nobody would see that they are empty."""
    if (data_dir / DATABASE_FILE).exists() or not (data_dir / MOVED_FILE).exists():
        return
    raise StartError(
        f"The books of {data_dir} moved to Postgres: {MOVED_FILE} lies there. Set server.database "
        "to postgresql://... in the configuration (and check --config), or use another --data-dir."
    )


def unusable(data_dir: Path, error: OSError) -> StartError:
    mend = "Choose another with --data-dir."
    if isinstance(error, PermissionError):
        mend = f"{AS_THE_SERVER}, or choose another with --data-dir."
    return StartError(f"The data directory {data_dir} cannot be used: {error.strerror}. {mend}")

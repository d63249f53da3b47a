"""Two files that stand by for a database which cannot be written.

The journal takes what may not be lost, a line a record: `["CRC32", record]`. A record counts from
the moment that `append` returns, after an fsync. A write that was cut off leaves a line whose
checksum does not fit; it was never promised to anybody, and reading leaves it out.

The ballast is room on the disk that is given up when there is no other, so that what is in flight
can still be written down.
"""

import contextlib
import errno
import logging
import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

BALLAST_BYTES = 4 * 1024 * 1024

_encode = msgspec.json.Encoder().encode
_decode_line = msgspec.json.Decoder(tuple[str, msgspec.Raw]).decode

log = logging.getLogger("tollway.database")


class Journal:
    """One thread at a time uses it. Every method raises `OSError` where the file system refuses."""

    def __init__(self, path: Path, fsync: Callable[[int], None] = os.fsync) -> None:
        self._path = path
        self._fsync = fsync
        self._torn = False

    def read(self) -> list[bytes]:
        """The records in it, in their order."""
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return []
        records: list[bytes] = []
        for number, line in enumerate(content.split(b"\n"), 1):
            record = _record(line)
            if record is not None:
                records.append(record)
            elif line:
                log.warning("line %d of %s is cut off or damaged; left out", number, self._path)
        return records

    def append(self, records: Sequence[bytes]) -> None:
        """All of them are on disk when this returns; none of them counts where it raises."""
        lines = b"".join(_line(record) for record in records)
        created = not self._path.exists()
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        descriptor = os.open(self._path, flags, 0o600)
        try:
            size = os.fstat(descriptor).st_size
            try:
                # A line that could not be taken back must not swallow the first of these.
                _write_all(descriptor, b"\n" + lines if self._torn or size else lines)
                self._fsync(descriptor)
            except OSError:
                self._torn = True
                with contextlib.suppress(OSError):
                    os.ftruncate(descriptor, size)
                raise
        finally:
            os.close(descriptor)
        if created:
            self._sync_directory()
        self._torn = False

    def empty(self) -> None:
        if not self._path.exists():
            return
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.ftruncate(descriptor, 0)
            self._fsync(descriptor)
        finally:
            os.close(descriptor)

    def _sync_directory(self) -> None:
        directory = os.open(self._path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._fsync(directory)
        finally:
            os.close(directory)


class Ballast:
    def __init__(self, path: Path, size_bytes: int = BALLAST_BYTES) -> None:
        self._path = path
        self._size_bytes = size_bytes

    def make(self) -> None:
        """Nothing to do where it is there. Raises `OSError` where there is no room for it."""
        with contextlib.suppress(FileNotFoundError):
            if self._path.stat().st_size == self._size_bytes:
                return
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _allocate(descriptor, self._size_bytes)
        except OSError:
            self.drop()
            raise
        finally:
            os.close(descriptor)

    def drop(self) -> bool:
        """Gives its room up; whether there was any to give."""
        try:
            self._path.unlink()
        except OSError:
            return False
        return True


def is_disk_full(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def _line(record: bytes) -> bytes:
    return b'["%08x",%b]\n' % (zlib.crc32(record), record)


def _record(line: bytes) -> bytes | None:
    try:
        checksum, raw = _decode_line(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    record = bytes(raw)
    return record if checksum == f"{zlib.crc32(record):08x}" else None


def _write_all(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]


def _allocate(descriptor: int, size_bytes: int) -> None:
    """Blocks of the disk and not only a size: macOS has no `posix_fallocate`, and is written to."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size_bytes)
        return
    block = os.urandom(65536)
    for _ in range(size_bytes // len(block)):
        _write_all(descriptor, block)
    os.fsync(descriptor)

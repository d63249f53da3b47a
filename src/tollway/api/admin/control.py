"""How a command reaches the server that is running: `control.sock` in the data directory, a JSON
line each way.

    -> {"command": "account show", "arguments": {"name": "acme"}}
    <- {"result": {...}}    or    {"error": "why not", "kind": "Refused"}

Whoever can open the socket is the operator: it has mode 0600, so that is the server's own user and
root. Whom the audit names is asked of the kernel, not of the caller.
"""

import asyncio
import contextlib
import json
import logging
import os
import pwd
import socket
import struct
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec

from tollway.errors import Refused, StartError, TollwayError

SOCKET_NAME = "control.sock"
WORKERS = "workers"
"""The folder of the workers' own data directories, where one port has several."""
REQUEST_BYTES_MAX = 64 * 1024
REQUEST_SECONDS_MAX = 5.0
STOP_SECONDS_MAX = 5.0
_CONNECT_SECONDS_MAX = 5.0
_REPLY_BYTES_READ = 64 * 1024
# An address holds 108 bytes on Linux and 104 on macOS, its closing zero included.
_PATH_BYTES_MAX = 100

log = logging.getLogger("tollway.control")


class _Request(msgspec.Struct):
    command: str
    arguments: dict[str, object]


class Commands(Protocol):
    """What carries commands out: `Operations`, of which a command that only asks needs nothing."""

    async def execute(
        self, command: str, arguments: Mapping[str, object], *, actor: str
    ) -> dict[str, object]: ...


class ControlServer:
    """The caller holds the lock of the data directory, so a socket that is there already was left
    behind."""

    def __init__(
        self,
        data_dir: Path,
        commands: Commands,
        *,
        request_seconds_max: float = REQUEST_SECONDS_MAX,
        stop_seconds_max: float = STOP_SECONDS_MAX,
    ) -> None:
        self._path = data_dir / SOCKET_NAME
        self._commands = commands
        self._request_seconds_max = request_seconds_max
        self._stop_seconds_max = stop_seconds_max
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Raises `StartError`."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._path.unlink(missing_ok=True)
            with _short(self._path) as address, _mode_0600():
                listener.bind(address)
        except OSError as error:
            listener.close()
            raise StartError(
                f"The control socket {self._path} cannot be made: {error.strerror}. Use a "
                "--data-dir on a local file system that this user may write."
            ) from error
        self._server = await asyncio.start_unix_server(
            self._accepted, sock=listener, limit=REQUEST_BYTES_MAX
        )

    async def stop(self) -> None:
        """What has begun is finished, or broken off where that takes too long; nothing new is
        taken."""
        if self._server is None:
            return
        self._server.close()
        self._path.unlink(missing_ok=True)
        if self._serving:
            _, late = await asyncio.wait(self._serving, timeout=self._stop_seconds_max)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            reply = await self._answer(reader, writer)
            writer.write(json.dumps(reply).encode() + b"\n")
            await writer.drain()
        except ConnectionError:
            log.debug("a command went away before its answer")
        except asyncio.CancelledError:  # by `stop`, and by nobody else
            log.warning("a command was broken off: it had not ended when the server did")
        finally:
            self._serving.discard(task)
            writer.close()

    async def _answer(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> dict[str, object]:
        try:
            async with asyncio.timeout(self._request_seconds_max):
                command, arguments = _request(await _line(reader))
            actor = _peer(writer.get_extra_info("socket"))
            return {"result": await self._commands.execute(command, arguments, actor=actor)}
        except TimeoutError:
            return {"error": "No command came.", "kind": "Refused"}
        except TollwayError as error:
            return {"error": error.message, "kind": type(error).__name__}
        except Exception:
            log.exception("a command failed on a fault of the program")
            return {
                "error": "Tollway failed on a fault of its own. The server's log has it.",
                "kind": "InternalFault",
            }


def ask(data_dir: Path, command: str, arguments: Mapping[str, object]) -> dict[str, Any] | None:
    """The running server's answer, or that of the first of its workers; None where no server runs.
    Raises `Refused` with the server's why."""
    return next(iter(_answers(data_dir, command, arguments)), None)


def ask_all(data_dir: Path, command: str, arguments: Mapping[str, object]) -> list[dict[str, Any]]:
    """The same of every worker, where there are several."""
    return list(_answers(data_dir, command, arguments))


def _answers(
    data_dir: Path, command: str, arguments: Mapping[str, object]
) -> Generator[dict[str, Any]]:
    for folder in _folders(data_dir):
        answer = _ask_one(folder, command, arguments)
        if answer is not None:
            yield answer


def _folders(data_dir: Path) -> Generator[Path]:
    """The workers' are looked for last: where this user may not, the first refusal says so."""
    yield data_dir
    yield from sorted((data_dir / WORKERS).glob("*"))


def _ask_one(
    data_dir: Path, command: str, arguments: Mapping[str, object]
) -> dict[str, Any] | None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_CONNECT_SECONDS_MAX)
        try:
            with _short(data_dir / SOCKET_NAME) as address:
                connection.connect(address)
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except OSError as error:
            raise Refused(
                f"The server's control socket in {data_dir} cannot be used: "
                f"{error.strerror or error}. Run this as the user of the server, or with sudo."
            ) from None
        connection.settimeout(None)  # some commands take long: `ledger verify` reads all there is
        reply = _exchange(connection, {"command": command, "arguments": dict(arguments)})
    if "error" in reply:
        raise Refused(str(reply["error"]))
    result: dict[str, Any] = reply["result"]
    return result


def user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _exchange(connection: socket.socket, request: Mapping[str, object]) -> dict[str, Any]:
    parts: list[bytes] = []
    try:
        connection.sendall(json.dumps(request).encode() + b"\n")
        while part := connection.recv(_REPLY_BYTES_READ):
            parts.append(part)
    except OSError as error:
        raise _unanswered() from error
    line = b"".join(parts)
    if not line.endswith(b"\n"):
        raise _unanswered()
    return json.loads(line)


def _unanswered() -> Refused:
    return Refused(
        "The server stopped before it answered. Look whether this was done before doing it again; "
        "its log may say why it stopped."
    )


async def _line(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readline()
    except ValueError:
        raise Refused(f"A command has at most {REQUEST_BYTES_MAX} bytes.") from None


def _request(line: bytes) -> tuple[str, dict[str, object]]:
    try:
        request = msgspec.json.decode(line, type=_Request)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Refused(
            "This is no command. Send one line of JSON with `command` and `arguments`."
        ) from None
    return request.command, request.arguments


def _peer(connection: socket.socket) -> str:
    if not hasattr(
        socket, "SO_PEERCRED"
    ):  # not Linux: the mode of the socket lets only this user in, and root
        return user_name(os.getuid())
    credentials = connection.getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
    )
    _, uid, _ = struct.unpack("3i", credentials)
    return user_name(uid)


@contextlib.contextmanager
def _short(path: Path) -> Generator[str]:
    """The path, or where it is too long for a socket's address, a short way there for as long as it
    is needed."""
    if len(os.fsencode(path)) <= _PATH_BYTES_MAX:
        yield str(path)
        return
    import tempfile  # with it come shutil, bz2 and lzma, 1 MB: few have such paths

    with tempfile.TemporaryDirectory(prefix="tollway-", dir="/tmp") as folder:
        link = Path(folder) / "data"
        link.symlink_to(path.parent.absolute())
        yield str(link / path.name)


@contextlib.contextmanager
def _mode_0600() -> Generator[None]:
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)

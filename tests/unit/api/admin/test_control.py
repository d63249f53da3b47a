"""Commands reach the running server through its socket, and nobody else does."""

import asyncio
import getpass
import json
import socket
import stat
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
from tests.unit.api.admin.conftest import Office

from tollway.api.admin import control
from tollway.api.admin.control import SOCKET_NAME, ControlServer, ask
from tollway.errors import Refused, StartError


@pytest.fixture
async def server(tmp_path: Path, office: Office) -> AsyncIterator[ControlServer]:
    server = ControlServer(tmp_path, office.operations)
    await server.start()
    yield server
    await server.stop()


async def ask_beside(data_dir: Path, command: str, **arguments: object) -> dict[str, object] | None:
    """`ask` blocks, as a command may; the server here shares the test's loop."""
    return await asyncio.to_thread(ask, data_dir, command, arguments)


async def send_line(data_dir: Path, line: bytes) -> dict[str, object]:
    reader, writer = await asyncio.open_unix_connection(data_dir / SOCKET_NAME)
    writer.write(line)
    answer = await reader.read()
    writer.close()
    return json.loads(answer)


async def test_a_command_gets_the_result_of_the_server(
    tmp_path: Path, office: Office, server: ControlServer
) -> None:
    created = await ask_beside(tmp_path, "account create", name="acme", credits=5)

    assert created is not None
    assert created["creditBalance"] == 5
    assert office.accounts.named("acme").id == created["id"]


async def test_a_refusal_arrives_with_its_why(tmp_path: Path, server: ControlServer) -> None:
    with pytest.raises(Refused, match="There is no account 'acme'"):
        await ask_beside(tmp_path, "account show", name="acme")


async def test_the_audit_has_the_user_of_the_process_that_asked(
    tmp_path: Path, office: Office, server: ControlServer
) -> None:
    await ask_beside(tmp_path, "account create", name="acme")
    await ask_beside(tmp_path, "credit top-up", account="acme", amount=1, actor="somebody")

    ((actor, *_),) = await office.audit()
    assert actor == getpass.getuser()


async def test_only_the_servers_own_user_may_open_the_socket(
    tmp_path: Path, server: ControlServer
) -> None:
    assert stat.S_IMODE((tmp_path / SOCKET_NAME).stat().st_mode) == 0o600


async def test_without_a_server_there_is_no_answer(tmp_path: Path) -> None:
    assert ask(tmp_path, "account list", {}) is None


async def test_a_socket_that_a_dead_server_left_behind_gives_no_answer_and_is_replaced(
    tmp_path: Path, office: Office
) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / SOCKET_NAME))
    assert ask(tmp_path, "account list", {}) is None

    server = ControlServer(tmp_path, office.operations)
    await server.start()

    assert await ask_beside(tmp_path, "account list") == {"data": []}
    await server.stop()


async def test_a_server_that_stopped_leaves_no_socket(
    tmp_path: Path, server: ControlServer
) -> None:
    await server.stop()

    assert not (tmp_path / SOCKET_NAME).exists()


async def test_a_data_directory_with_a_long_path_works_as_any_other(
    tmp_path: Path, office: Office
) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    server = ControlServer(deep, office.operations)
    await server.start()

    assert await ask_beside(deep, "account list") == {"data": []}
    assert stat.S_ISSOCK((deep / SOCKET_NAME).stat().st_mode)
    await server.stop()
    assert not (deep / SOCKET_NAME).exists()


async def test_a_data_directory_that_is_not_there_is_said_at_the_start(
    tmp_path: Path, office: Office
) -> None:
    server = ControlServer(tmp_path / "none", office.operations)

    with pytest.raises(StartError, match="cannot be made: No such file or directory"):
        await server.start()
    await server.stop()


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"hello\n",
        b"[]\n",
        b'{"command": 1, "arguments": {}}\n',
        b'{"command": "account list"}\n',
        b"\xff\xfe\n",
        b"[" * 10_000 + b"\n",
    ],
)
async def test_what_is_no_command_is_refused(
    tmp_path: Path, server: ControlServer, line: bytes
) -> None:
    answer = await send_line(tmp_path, line)

    assert answer["kind"] == "Refused"
    assert "This is no command" in str(answer["error"])


async def test_a_line_that_does_not_end_is_refused(tmp_path: Path, server: ControlServer) -> None:
    answer = await send_line(tmp_path, b"x" * (control.REQUEST_BYTES_MAX * 2 + 10))

    assert answer["error"] == "A command has at most 65536 bytes."


async def test_a_caller_that_says_nothing_is_sent_away(tmp_path: Path, office: Office) -> None:
    server = ControlServer(tmp_path, office.operations, request_seconds_max=0.01)
    await server.start()

    assert (await send_line(tmp_path, b""))["error"] == "No command came."
    await server.stop()


class BrokenCommands:
    async def execute(
        self, command: str, arguments: Mapping[str, object], *, actor: str
    ) -> dict[str, object]:
        raise ZeroDivisionError("secret detail")


async def test_a_fault_of_the_program_goes_to_the_log_and_not_to_the_caller(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = ControlServer(tmp_path, BrokenCommands())
    await server.start()

    with pytest.raises(Refused, match="fault of its own"):
        await ask_beside(tmp_path, "account list")

    assert "secret detail" in caplog.text
    await server.stop()


async def test_a_server_that_dies_before_it_answers_is_not_taken_for_success(
    tmp_path: Path,
) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.close()

    server = await asyncio.start_unix_server(hang_up, tmp_path / SOCKET_NAME)

    with pytest.raises(Refused, match="The server stopped before it answered"):
        await ask_beside(tmp_path, "account list")
    server.close()


class EndlessCommands:
    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.ended = asyncio.Event()

    async def execute(
        self, command: str, arguments: Mapping[str, object], *, actor: str
    ) -> dict[str, object]:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.set()
        return {}


async def test_a_command_that_takes_too_long_is_broken_off_when_the_server_stops(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    commands = EndlessCommands()
    server = ControlServer(tmp_path, commands, stop_seconds_max=0.01)
    await server.start()
    asked = asyncio.create_task(ask_beside(tmp_path, "ledger verify"))
    await commands.begun.wait()

    await server.stop()

    assert commands.ended.is_set()
    with pytest.raises(Refused, match="The server stopped before it answered"):
        await asked
    assert caplog.messages == ["a command was broken off: it had not ended when the server did"]

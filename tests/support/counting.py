"""What one request and one chunk of a stream do, as numbers that no machine's mood changes: calls,
bytecode instructions, passes over JSON, lines logged.

    python -m tests.support.counting [--by-file | --by-function | --json]

The real server runs in this process, with its event loop, its writer thread, its sockets and its
database; a client and a model's server take turns with it in threads that are not counted. A count
is what happens on one thread between two reads from the network; of thirty such, the most common.
"""

import argparse
import contextlib
import itertools
import json
import os
import re
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import msgspec
from tests.support.server import START_SECONDS_MAX, config_for

from tollway import serve
from tollway.api.admin.control import ask
from tollway.api.edge import EdgeProtocol
from tollway.database import writer
from tollway.settings import CommandLine
from tollway.upstreams.connection import Connection

MODEL = "acme/parrot"
REQUESTS = 30
CHUNKS = 30
WARM = 10
WRITER = "tollway-write"
FILE_IDLE_SECONDS = 0.5
QUIET_SECONDS = 1.0
"""Charges are filed together when nothing has come for a while: a busy machine must not make that
several times of it, and it must have been done when the counting ends."""
CONFIG = """
[limits]
requests_per_minute = 1000000
"""
TOKEN = {"account": "default", "scopes": ["llm-all"]}
BODY = {
    "model": MODEL,
    "messages": [
        {"role": "system", "content": "You are a careful assistant."},
        {"role": "user", "content": "Explain in three sentences why the Tay Bridge fell. " * 14},
    ],
    "temperature": 0.7,
    "top_p": 0.95,
    "max_tokens": 64,
    "user": "u-1029",
}
REPLY: dict[str, Any] = {
    "id": "chatcmpl-7f3d9a2b8c1e4f60",
    "object": "chat.completion",
    "created": 1763800000,
    "model": "parrot-upstream",
    "choices": [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "It fell in a storm. " * 10,
                "refusal": None,
                "tool_calls": [],
            },
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": {
        "prompt_tokens": 212,
        "completion_tokens": 64,
        "total_tokens": 276,
        "prompt_tokens_details": None,
    },
}
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\n%b\r\n"
STREAM_HEAD = _HEAD % (b"text/event-stream", b"transfer-encoding: chunked\r\n")

_JSON_FILES = ("/json/__init__.py", "/json/decoder.py", "/json/encoder.py")


@dataclass
class Count:
    """By function, but `json_passes`: calls of a JSON encoder or decoder, and conversions of what
    one made."""

    calls: Counter[str] = field(default_factory=Counter[str])
    c_calls: Counter[str] = field(default_factory=Counter[str])
    instructions: Counter[str] = field(default_factory=Counter[str])
    json_passes: int = 0

    def copy(self) -> "Count":
        return Count(
            Counter(self.calls), Counter(self.c_calls), Counter(self.instructions), self.json_passes
        )

    def since(self, before: "Count") -> "Count":
        return Count(
            self.calls - before.calls,
            self.c_calls - before.c_calls,
            self.instructions - before.instructions,
            self.json_passes - before.json_passes,
        )

    def share(self, of: int) -> "Count":
        calls, c_calls, instructions = (
            Counter({file: round(number / of) for file, number in counter.items()})
            for counter in (self.calls, self.c_calls, self.instructions)
        )
        return Count(calls, c_calls, instructions, round(self.json_passes / of))

    def totals(self) -> dict[str, int]:
        logged = sum(n for name, n in self.calls.items() if "/logging/" in name)
        return {
            "calls": self.calls.total(),
            "c_calls": self.c_calls.total(),
            "instructions": self.instructions.total(),
            "json_passes": self.json_passes,
            "logging_calls": logged,
        }


class Counting:
    """Counts each thread by itself; `marks` are the counts at each start of a function of
    `at`."""

    def __init__(self, *at: CodeType) -> None:
        self._at = frozenset(at)
        self._on = False
        self.marks: dict[CodeType, list[Count]] = {code: [] for code in at}
        self.of_thread: dict[int, Count] = {}

    def install(self) -> None:
        """On this thread, and on those that it and others start from now on."""
        threading.settrace(self._trace)
        threading.setprofile(self._profile)
        sys.settrace(self._trace)
        sys.setprofile(self._profile)

    def __enter__(self) -> None:
        time.sleep(QUIET_SECONDS)  # for what came before
        self._on = True

    def __exit__(self, *_: object) -> None:
        time.sleep(QUIET_SECONDS)  # for what comes after a reply
        self._on = False

    def _count(self) -> Count:
        return self.of_thread.setdefault(threading.get_ident(), Count())

    def _trace(self, frame: FrameType, event: str, _: object) -> Any:
        if not self._on or event != "call":
            return None
        count, code = self._count(), frame.f_code
        if code in self._at:
            self.marks[code].append(count.copy())
        name = _name(code)
        count.calls[name] += 1
        if code.co_filename.endswith(_JSON_FILES):
            count.json_passes += 1
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        instructions = count.instructions

        def local(_: FrameType, event: str, __: object) -> Any:
            if event == "opcode":
                instructions[name] += 1
            return local

        return local

    def _profile(self, frame: FrameType, event: str, function: Any) -> None:
        if self._on and event == "c_call":
            count = self._count()
            count.c_calls[_name(frame.f_code)] += 1
            if _passes_json(function):
                count.json_passes += 1


def _name(code: CodeType) -> str:
    return f"{'/'.join(Path(code.co_filename).parts[-3:])}: {code.co_qualname}"


_passes = re.compile(r"(json_)?(encode|decode)(_into|_lines)?|convert|to_builtins").fullmatch


def _passes_json(function: Any) -> bool:
    """A method of an encoder or decoder, or one of msgspec's functions."""
    of = getattr(function, "__self__", None)
    module = getattr(of, "__name__", None) or type(of).__module__
    return module in ("msgspec._core", "msgspec.json") and bool(_passes(function.__name__))


# --- the two ends, in threads of their own --------------------------------------------------------


class Model:
    """Answers each request; of a stream, one chunk each time it is told to go on."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.go_on = threading.Semaphore(0)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        while (asked := _read_message(connection)) is not None:
            if not json.loads(asked).get("stream"):
                body = compact(REPLY)
                connection.sendall(head_of_a_reply(len(body)) + body)
                continue
            connection.sendall(
                STREAM_HEAD + chunk_of_a_stream({"role": "assistant", "content": ""})
            )
            for _ in range(WARM + CHUNKS):
                self.go_on.acquire()
                connection.sendall(chunk_of_a_stream({"content": " bridge"}))
            self.go_on.acquire()
            usage: dict[str, Any] = {**_event({}), "choices": [], "usage": REPLY["usage"]}
            last = _framed(b"data: " + compact(usage) + b"\n\ndata: [DONE]\n\n")
            connection.sendall(chunk_of_a_stream({}, "stop") + last + b"0\r\n\r\n")


class Client:
    def __init__(self, port: int, token: str, model: str = MODEL) -> None:
        self._connection = socket.create_connection(("127.0.0.1", port))
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._token = token
        self._body = {**BODY, "model": model}

    def ask(self) -> None:
        self._send({**self._body, "stream": False})
        reply = _read_message(self._connection)
        assert reply is not None
        assert json.loads(reply)["usage"]["credits_consumed"] == 1, reply

    def stream(self, go_on: Callable[[], None]) -> None:
        """Tells the model's server to go on each time something has come."""
        self._send({**self._body, "stream": True})
        received = b""
        while not received.endswith(b"0\r\n\r\n"):
            data = self._connection.recv(65536)
            assert data, received
            received += data
            go_on()
        assert received.count(b'" bridge"') == WARM + CHUNKS, received

    def _send(self, body: dict[str, Any]) -> None:
        self._connection.sendall(request_of(self._token, body))


def request_of(token: str, body: dict[str, Any]) -> bytes:
    content = compact(body)
    return (
        b"POST /api/v1/chat/completions HTTP/1.1\r\nhost: here\r\n"
        b"authorization: Bearer %b\r\ncontent-type: application/json\r\n"
        b"accept: application/json\r\nuser-agent: OpenAI/Python 2.8.0\r\n"
        b"content-length: %d\r\n\r\n%b" % (token.encode(), len(content), content)
    )


def _read_message(connection: socket.socket) -> bytes | None:
    """The body of a message that says its length; None where the other end has closed."""
    received = b""
    while True:
        data = connection.recv(65536)
        if not data:
            return None
        received += data
        head, end, body = received.partition(b"\r\n\r\n")
        if end:
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
            if len(body) >= length:
                return body


def head_of_a_reply(length: int) -> bytes:
    return _HEAD % (b"application/json", b"content-length: %d\r\n" % length)


def _event(delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return {
        "id": "chatcmpl-7f3d9a2b8c1e4f60",
        "object": "chat.completion.chunk",
        "created": 1763800000,
        "model": "parrot-upstream",
        "choices": [choice],
        "usage": None,
    }


def chunk_of_a_stream(delta: dict[str, str], finish_reason: str | None = None) -> bytes:
    return _framed(b"data: " + compact(_event(delta, finish_reason)) + b"\n\n")


def _framed(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


# --- the run --------------------------------------------------------------------------------------


def count() -> dict[str, Count]:
    """`request` and `chunk` on the event loop, and `charge` on the writer's thread. Runs the server
    on this thread, and can so only run once in a process."""
    on_request, on_chunk = EdgeProtocol.data_received.__code__, Connection.data_received.__code__
    counting = Counting(on_request, on_chunk)
    model = Model()
    counted: dict[str, Count] = {}
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        driver = threading.Thread(
            target=_drive, args=(folder, port, model, counting, on_request, on_chunk, counted)
        )
        driver.start()
        writer.FILE_IDLE_SECONDS = FILE_IDLE_SECONDS
        counting.install()
        try:
            _serve(folder, port, model.port)
        finally:
            sys.settrace(None)
            sys.setprofile(None)
            driver.join()
    return counted


def _serve(folder: Path, port: int, model_port: int) -> None:
    config = folder / "tollway.toml"
    config.write_text(config_for(f"http://127.0.0.1:{model_port}/v1", model=MODEL, more=CONFIG))
    serve_here(config, folder / "data", port)


def serve_here(config: Path, data_dir: Path, port: int) -> None:
    """As `tollway serve` does, but that it does not become another program for it."""
    given = CommandLine.of(config, data_dir, None, port)
    serve.prepare(given.settings())
    sys.argv = ["tollway", msgspec.json.encode(given).decode()]
    with contextlib.suppress(SystemExit):
        serve.main()


def _drive(
    folder: Path,
    port: int,
    model: Model,
    counting: Counting,
    on_request: CodeType,
    on_chunk: CodeType,
    counted: dict[str, Count],
) -> None:
    try:
        client = Client(port, issued_token(folder / "data"))
        for _ in range(WARM):
            client.ask()
        with counting:
            for _ in range(REQUESTS):
                client.ask()
        counted["request"] = _most_common(counting.marks[on_request])
        writing = next(thread for thread in threading.enumerate() if thread.name == WRITER)
        assert writing.ident is not None
        counted["charge"] = counting.of_thread[writing.ident].share(REQUESTS)
        with counting:
            client.stream(model.go_on.release)
        counted["chunk"] = _most_common(counting.marks[on_chunk][-CHUNKS:-3])
    finally:
        os.kill(os.getpid(), signal.SIGTERM)


def _most_common(marks: Sequence[Count]) -> Count:
    between = [after.since(before) for before, after in itertools.pairwise(marks)]
    ranked = Counter(tuple(count.totals().items()) for count in between)
    totals, _ = ranked.most_common(1)[0]
    return next(count for count in between if tuple(count.totals().items()) == totals)


def issued_token(data_dir: Path) -> str:
    deadline = time.monotonic() + START_SECONDS_MAX
    while (issued := ask(data_dir, "token issue", TOKEN)) is None:
        assert time.monotonic() < deadline, "the server did not come up"
        time.sleep(0.02)
    return issued["personal_access_token"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main() -> None:
    parser = argparse.ArgumentParser(description="Count what a request and a chunk do.")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--by-file", action="store_true")
    parser.add_argument("--by-function", action="store_true")
    chosen = parser.parse_args()
    counted = count()
    if chosen.json:
        told = json.dumps({name: count.totals() for name, count in counted.items()})
    else:
        told = ""
        for name, of in counted.items():
            rows = _by_file(of) if chosen.by_file else of if chosen.by_function else Count()
            told += _table(name, rows, of.totals())
    sys.stdout.write(told + "\n")


def _by_file(count: Count) -> Count:
    grouped = Count()
    for counter, of in (
        (grouped.calls, count.calls),
        (grouped.c_calls, count.c_calls),
        (grouped.instructions, count.instructions),
    ):
        for name, number in of.items():
            counter[name.partition(":")[0]] += number
    return grouped


def _table(name: str, rows: Count, totals: dict[str, int]) -> str:
    lines = [f"\n| {name} | calls | C calls | instructions |", "|---|--:|--:|--:|"]
    for row, instructions in rows.instructions.most_common():
        lines.append(f"| {row} | {rows.calls[row]} | {rows.c_calls[row]} | {instructions} |")
    numbers = " | ".join(f"{totals[key]}" for key in ("calls", "c_calls", "instructions"))
    lines.append(f"| all; {totals['json_passes']} passes over JSON | {numbers} |\n")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

"""What a stream that has begun and waits for its model keeps in the server's memory, by the file
whose code took it.

    python -m tests.support.holding [--streams 200] [--message-bytes 700] [--lines | --json]

The real server runs in this process, as in `counting.py`, and `tracemalloc` has seen all that it
took since its start: Python's objects, and what uvloop and httptools take by Python's allocator.
Not in it: what OpenSSL and the kernel hold, and room that was taken and is free again.
"""

import argparse
import contextlib
import json
import os
import signal
import socket
import sys
import tempfile
import threading
import tracemalloc
from pathlib import Path
from typing import Any

from tests.support.counting import free_port, issued_token, request_of, serve_here
from tests.support.fake_upstream import FakeUpstreamProcess
from tests.support.server import config_for

MODEL = "acme/parrot"
CONFIG = """
[limits]
requests_per_minute = 1000000
concurrent_requests = 100000
"""
DIRECTIVES = json.dumps({"chunks": 3, "hang_after": 1})
NOT_THE_SERVERS = ("*/tests/*", "*/socket.py", "*/tracemalloc.py", "*/threading.py")


def held(streams: int, message_bytes: int, by: str = "filename") -> dict[str, int]:
    """Bytes a stream. Runs the server on this thread, and can so only run once in a process."""
    found: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        with FakeUpstreamProcess(folder / "upstream.log") as upstream:
            config = folder / "tollway.toml"
            base_url = f"http://127.0.0.1:{upstream.port}/v1"
            config.write_text(config_for(base_url, model=MODEL, more=CONFIG))
            arguments = (folder / "data", port, streams, message_bytes, by, found)
            driver = threading.Thread(target=_drive, args=arguments)
            driver.start()
            tracemalloc.start()
            serve_here(config, folder / "data", port)
            driver.join()
    return found


def _drive(
    data_dir: Path, port: int, streams: int, message_bytes: int, by: str, found: dict[str, int]
) -> None:
    try:
        request = _request(issued_token(data_dir), message_bytes)
        with contextlib.ExitStack() as stack:
            for _ in range(8):
                _begin(stack, port, request)
            before = tracemalloc.take_snapshot()
            for _ in range(streams):
                _begin(stack, port, request)
            after = tracemalloc.take_snapshot()
        filters = [tracemalloc.Filter(False, pattern) for pattern in NOT_THE_SERVERS]
        before, after = before.filter_traces(filters), after.filter_traces(filters)
        for line in after.compare_to(before, by):
            frame = line.traceback[0]
            place = "/".join(Path(frame.filename).parts[-2:])
            if by == "lineno":
                place += f":{frame.lineno}"
            if size := round(line.size_diff / streams):
                found[place] = size
    finally:
        os.kill(os.getpid(), signal.SIGTERM)


def _request(token: str, message_bytes: int) -> bytes:
    body: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "x" * message_bytes}],
        "max_tokens": 64,
        "stream": True,
        "user": DIRECTIVES,
    }
    return request_of(token, body)


def _begin(stack: contextlib.ExitStack, port: int, request: bytes) -> None:
    connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
    connection.sendall(request)
    received = b""
    while b"data: " not in received:
        data = connection.recv(4096)
        assert data, received
        received += data


def main() -> None:
    parser = argparse.ArgumentParser(description="What a stream keeps in memory.")
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--message-bytes", type=int, default=700)
    parser.add_argument("--lines", action="store_true")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    found = held(chosen.streams, chosen.message_bytes, "lineno" if chosen.lines else "filename")
    if chosen.json:
        print(json.dumps(found))  # noqa: T201 (this is a program)
        return
    for place, size in sorted(found.items(), key=lambda item: -item[1]):
        sys.stdout.write(f"{size:8,} {place}\n")
    sys.stdout.write(f"{sum(found.values()):8,} bytes a stream\n")


if __name__ == "__main__":
    main()

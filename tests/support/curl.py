"""Runs a curl command as a shell would, through curl where the machine has it. Elsewhere the same
bytes are sent without it: only the options that our pages use are understood."""

import shlex
import shutil
import subprocess
from urllib.parse import urlsplit

from tests.support.http import Head, Piece, RawClient, Reply

SECONDS_MAX = 60


def run_curl(command: str) -> Reply:
    if shutil.which("curl") is None:
        return _without_curl(shlex.split(command.replace("\\\n", " ")))
    done = subprocess.run(
        ["bash", "-c", f"{command} --silent --show-error --include --max-time {SECONDS_MAX}"],
        capture_output=True,
        check=True,
    )
    head, _, body = done.stdout.partition(b"\r\n\r\n")
    status_line, *lines = head.decode("latin-1").split("\r\n")
    version, status, reason = (*status_line.split(" ", 2), "")[:3]
    headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    return Reply(Head(int(status), reason, version, headers), [Piece(body, 0.0)])


def _without_curl(words: list[str]) -> Reply:
    method, url, headers, body = None, "", [("accept", "*/*")], None
    rest = iter(words[1:])
    for word in rest:
        match word:
            case "-X":
                method = next(rest)
            case "-H":
                name, _, value = next(rest).partition(":")
                headers.append((name, value.strip()))
            case "-d":
                body = next(rest).replace("\n", "").encode()
            case _:
                url = word
    if method is None:
        method = "GET" if body is None else "POST"
    address = urlsplit(url)
    assert address.hostname is not None
    assert address.port is not None
    with RawClient(address.hostname, address.port, timeout_seconds=SECONDS_MAX) as client:
        lines = [f"{method} {address.path} HTTP/1.1", f"host: {address.netloc}"]
        lines += [f"{name}: {value}" for name, value in headers]
        lines += [] if body is None else [f"content-length: {len(body)}"]
        client.send("\r\n".join([*lines, "", ""]).encode() + (body or b""))
        return client.read_reply()

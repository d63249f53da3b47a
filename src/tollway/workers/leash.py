"""What the supervisor and a worker tell one another, a JSON line for each message on a socket pair.

It ends when either of them does: then the other goes too.
"""

from pathlib import Path

import msgspec
from msgspec import Struct

from tollway.console import Welcome
from tollway.settings import CommandLine

LEASH = "TOLLWAY_LEASH"
"""The environment's variable that tells a worker its end's number."""
ALIVE_EVERY_SECONDS = 2.0
SILENT_SECONDS_MAX = 30
"""Of a worker that has said something before: its start is its own affair."""


class Start(Struct, frozen=True, tag="start"):
    """To a worker, first of all. `listener` is its socket's number."""

    given: CommandLine
    number: int
    workers: int
    listener: int


class ModelAddress(Struct, frozen=True, tag="model"):
    """To a worker: where the embedded model can be reached; empty while it is away."""

    address: str = ""
    api_key: str = ""


class Stop(Struct, frozen=True, tag="stop"):
    """To a worker that serves. No signal: a terminal's Ctrl-C goes to all processes, and a worker
    would take the supervisor's for the second, which ends it at once."""

    at_once: bool = False


class Up(Struct, frozen=True, tag="up"):
    """From a worker: it serves."""

    welcome: Welcome


class Alive(Struct, frozen=True, tag="alive"):
    """From a worker: its event loop runs."""


def line(message: Start | ModelAddress | Stop | Up | Alive) -> bytes:
    return _encode(message) + b"\n"


def _path(_type: type, written: str) -> Path:
    return Path(written)


to_worker = msgspec.json.Decoder(Start | ModelAddress | Stop)
from_worker = msgspec.json.Decoder(Up | Alive, dec_hook=_path)
_encode = msgspec.json.Encoder(enc_hook=str).encode

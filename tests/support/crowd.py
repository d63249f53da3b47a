"""Clients that ask all the time, each in a thread, and what they saw. Their upstream does as the
request's `user` says (`tests.support.fake_upstream`)."""

import json
import threading
import time
from abc import ABC, abstractmethod
from random import Random

from msgspec import Struct
from tests.support.http import BodyCutError, RawClient

INPUT_TOKENS = 9


class Seen(Struct):
    """What one client saw of one request."""

    tag: str
    streamed: bool
    pace_seconds: float
    tokens: int = 0
    finished: bool = False
    credits: int | None = None


class Crowd(ABC):
    """A subclass says what a client asks (`make`, `ask`)."""

    def __init__(self, clients: int) -> None:
        self.seen: list[Seen] = []
        self._clients = clients
        self._working = False
        self._threads: list[threading.Thread] = []

    def work(self, dice: Random) -> None:
        self._working = True
        self._threads = [
            threading.Thread(target=self._ask_on, args=(Random(dice.random()), number))
            for number in range(self._clients)
        ]
        for thread in self._threads:
            thread.start()

    def rest(self, seconds_max: float = 60) -> None:
        self._working = False
        for thread in self._threads:
            thread.join(seconds_max)
            assert not thread.is_alive(), "a client hangs"

    @abstractmethod
    def make(self, name: str, dice: Random) -> Seen:
        """Of the request of that name, before it is sent."""

    @abstractmethod
    def ask(self, seen: Seen, dice: Random) -> None: ...

    def _ask_on(self, dice: Random, number: int) -> None:
        count = 0
        while self._working:
            count += 1
            seen = self.make(f"{number}.{count}", dice)
            self.seen.append(seen)
            try:
                self.ask(seen, dice)
            except (OSError, BodyCutError):
                time.sleep(0.005)


def ask_parrot(port: int, token: str, seen: Seen, *, chunks: int, timeout_seconds: float) -> None:
    """Raises `OSError` and `BodyCutError`, with `seen` as far as it came."""
    directives = {
        "chunks": chunks,
        "input_tokens": INPUT_TOKENS,
        "pace_ms": seen.pace_seconds * 1000,
        "tag": seen.tag,
    }
    fields = {
        "model": "acme/parrot",
        "messages": [{"role": "user", "content": "Say."}],
        "user": json.dumps(directives),
        "stream": seen.streamed,
    }
    with RawClient("127.0.0.1", port, timeout_seconds=timeout_seconds) as client:
        client.request(
            "POST",
            "/v1/chat/completions",
            json.dumps(fields).encode(),
            ("authorization", f"Bearer {token}"),
            ("x-request-id", seen.tag),
        )
        if seen.streamed:
            _watch(client, seen)
            return
        reply = client.read_reply()
        if reply.status == 200:
            usage = reply.json()["usage"]
            seen.tokens, seen.credits = usage["completion_tokens"], usage["credits_consumed"]
            seen.finished = True


def _watch(client: RawClient, seen: Seen) -> None:
    if client.read_head().status != 200:
        return
    while True:
        (event,) = client.read_events(1)
        if event.comment is not None:
            if event.comment.startswith("credits consumed="):
                seen.credits = int(event.comment.split("=")[1].split(" ")[0])
        elif event.data == "[DONE]":
            seen.finished = True
            return
        elif event.json()["choices"][0]["delta"].get("content"):
            seen.tokens += 1

"""What the gateway asks of a server that runs a model.

An `Upstream` takes an `Ask` (already validated, its cost already held) and gives the answer in
one of two ways: `complete` returns the whole reply, `stream` pushes each event's JSON into an
`EventSink` as it arrives. Both raise a `RequestError` (`Unavailable`, `UpstreamFailed`,
`UpstreamTimeout`, `InvalidRequest`) and nothing else. Cancelling either closes the connection to
the server, which is how a server learns that nobody waits any more.
"""

from collections.abc import Mapping
from typing import Protocol

import msgspec

from tollway.deadlines import Deadlines
from tollway.errors import RequestError
from tollway.wire.chat import ChatCompletion


class Ask(msgspec.Struct, gc=False):
    """One request to one upstream. `fields` are the client's, by allow-list, without model, stream
    and caps on length; emptied once the answer has begun. `deadlines` None: the upstream's own."""

    request_id: str
    model: str
    fields: Mapping[str, object]
    output_tokens_max: int
    deadlines: Deadlines | None = None


class Source(Protocol):
    """What a stream comes from."""

    def pause_reading(self) -> None:
        """The client is slow: wait. May be called when already paused."""
        ...

    def resume_reading(self) -> None: ...

    def abandon(self, error: RequestError) -> None:
        """What came is not to be gone on with: close, and let `stream` raise `error`."""
        ...


class EventSink(Protocol):
    """Takes a stream in the network's own callbacks: no task switch and no queue between two
    sockets."""

    def opened(self, source: Source) -> None:
        """The server accepted the request; called once for each connection that feeds this sink."""
        ...

    def event(self, payload: bytes) -> None:
        """One event: the JSON after `data:`. Comments and `[DONE]` are not passed on. Must not
        raise."""
        ...

    def flush(self) -> None:
        """All that has arrived was passed to `event`: now write."""
        ...

    def passed_on(self, frames: bytes) -> bool:
        """Takes all that has arrived, if it is whole events, each with its `data: ` and its blank
        line, that need no reading; else says False, and is given them by `event` and `flush`."""
        ...


class Upstream(Protocol):
    name: str
    counts_input_tokens: bool
    """Whether `count_input_tokens` may have an answer."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    def ready(self) -> bool:
        """Whether a request sent now has a chance; for `/readyz`, costs nothing."""
        ...

    async def complete(self, ask: Ask) -> ChatCompletion: ...

    async def stream(self, ask: Ask, sink: EventSink) -> None:
        """Returns when the server ended the stream in good order (`[DONE]`, or the end of the
        body)."""
        ...

    async def count_input_tokens(self, ask: Ask) -> int | None:
        """Exact, by the model's own tokenizer and template; None where this server cannot be asked
        cheaply."""
        ...

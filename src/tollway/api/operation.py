"""The routes off the metered path: what all of them share.

A `Resource` is one path, and its operations by method. It makes the checks in the contract's order
(route, authentication, scope), then hands an `Asked` to the operation's function, which reads what
it was sent and then takes its place in the account's rate: what is malformed costs none.

    async def receipt(asked: Asked) -> Answer:
        request_id = asked.path["request_id"]
        await asked.take_place()
        ...
"""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
from msgspec import Struct
from starlette.datastructures import QueryParams
from starlette.types import Receive, Scope, Send

from tollway.accounts import Accounts
from tollway.api.address import Network, client_address, client_request_id
from tollway.api.body import BODY_BYTES_MAX, refusal_of_head, too_large
from tollway.api.observer import RequestObserver
from tollway.api.replies import Headers, error_reply, rate_headers
from tollway.api.siblings import Siblings
from tollway.catalogue import Catalogue
from tollway.clock import Clock, new_id
from tollway.errors import (
    InternalFault,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    RateLimited,
    RateWhy,
    RequestError,
    Unavailable,
    how_many,
)
from tollway.gateway.admit import Gate
from tollway.gateway.authenticate import Authenticator, require_scope
from tollway.gateway.types import Call, Caller, Standing
from tollway.ledger.base import Ledger
from tollway.ledger.signing import SigningKey
from tollway.metrics.exposition import Exposition
from tollway.rates.base import RateLimiter, RateState, Take
from tollway.tokens import Tokens

log = logging.getLogger("tollway.api")

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class ApiParts:
    """What the routes need. `not_ready` gives the reasons why a request may fail now."""

    authenticator: Authenticator
    tokens: Tokens
    accounts: Accounts
    ledger: Ledger
    catalogue: Catalogue
    limiter: RateLimiter
    gate: Gate
    clock: Clock
    observer: RequestObserver
    exposition: Exposition
    signing_key: SigningKey
    not_ready: Callable[[], list[str]]
    trusted_proxies: Sequence[Network]
    version: str
    siblings: Siblings | None = None


class Answer(Struct, frozen=True):
    """`body` becomes JSON."""

    body: object
    status: int = 200
    headers: tuple[tuple[bytes, bytes], ...] = ()


class ClientLeft(Exception):
    """In the middle of the request's body: nobody is there to answer."""


class Asked:
    """One authenticated request to one operation."""

    __slots__ = ("_headers", "_receive", "_take", "caller", "parts", "path", "query")

    def __init__(self, parts: ApiParts, caller: Caller, scope: Scope, receive: Receive) -> None:
        self.parts = parts
        self.caller = caller
        self.path: Mapping[str, str] = scope["path_params"]
        self.query = QueryParams(scope["query_string"])
        self._headers: Mapping[bytes, bytes] = dict(scope["headers"])
        self._receive = receive
        self._take: Take | None = None

    async def body(self) -> bytes:
        """Raises `InvalidRequest` (413, 415) for one that is too large or not JSON."""
        if (refusal := refusal_of_head(self._headers)) is not None:
            raise refusal
        body = bytearray()
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientLeft
            body += message.get("body", b"")
            if len(body) > BODY_BYTES_MAX:
                raise too_large()
            if not message.get("more_body", False):
                return bytes(body)

    async def take_place(self) -> None:
        """Takes a place in the account's rate; every operation does, once it knows what is
        asked."""
        take = await self.parts.limiter.take(self._rate_key, self._rate_limit)
        if not take.admitted:
            raise RateLimited(
                f"This account may make {how_many(take.state.limit, 'request')} in any 60 s "
                "besides chat completions. "
                f"The next place is free in {take.state.reset_seconds:.1f} s.",
                RateWhy("other_requests_per_minute", take.state.limit, take.state.reset_seconds),
            )
        self._take = take

    async def give_back(self) -> None:
        take, self._take = self._take, None
        if take is not None:
            await self.parts.limiter.give_back(self._rate_key, take.admitted_at)

    async def rate(self) -> RateState:
        if self._take is not None:
            return self._take.state
        return await self.parts.limiter.state(self._rate_key, self._rate_limit)

    @property
    def _rate_key(self) -> str:
        return "other:" + self.caller.account.id

    @property
    def _rate_limit(self) -> int:
        return self.parts.gate.limits.other_requests_per_minute


@dataclass(frozen=True, slots=True)
class Operation:
    """`kind` names it in metrics and the access log. `scope` None: any token will do."""

    kind: str
    scope: str | None
    answer: Callable[[Asked], Awaitable[Answer]]


class Resource:
    """One path. An ASGI application."""

    def __init__(self, parts: ApiParts, **operations: Operation) -> None:
        self._parts = parts
        self._operations = operations

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = call_of(self._parts, scope)
        operation = operation_for(scope["method"], self._operations)
        if operation is None:
            await refuse(self._parts, call, not_allowed(scope, self._operations), scope, send)
            return
        try:
            await self._serve(operation, call, scope, receive, send)
        except ClientLeft:
            return

    async def _serve(
        self, operation: Operation, call: Call, scope: Scope, receive: Receive, send: Send
    ) -> None:
        parts = self._parts
        asked: Asked | None = None
        try:
            caller = await parts.authenticator.authenticate(call.authorization, call.address)
            asked = Asked(parts, caller, scope, receive)
            if operation.scope is not None:
                require_scope(caller, operation.scope)
            answer = await operation.answer(asked)
        except RequestError as error:
            await self._refuse(operation, call, asked, error, scope, send)
            return
        except ClientLeft:
            raise
        except Exception:
            log.exception("request %s failed on a fault of the program", call.request_id)
            await self._refuse(operation, call, asked, InternalFault(), scope, send)
            return
        parts.observer.answered(operation.kind, answer.status, call, asked.caller, None)
        headers: Headers = [
            (b"content-type", b"application/json"),
            (b"x-request-id", call.request_id.encode()),
            *rate_headers(await asked.rate()),
            *answer.headers,
        ]
        await respond(scope, send, answer.status, headers, _encode(answer.body))

    async def _refuse(
        self,
        operation: Operation,
        call: Call,
        asked: Asked | None,
        error: RequestError,
        scope: Scope,
        send: Send,
    ) -> None:
        if asked is None:
            await refuse(self._parts, call, error, scope, send, kind=operation.kind)
            return
        # A place is given back where it was not the request's doing, or where it was malformed.
        if isinstance(error, Unavailable | InvalidRequest):
            await asked.give_back()
        available = await self._parts.gate.credits_available(asked.caller)
        standing = Standing(await asked.rate(), available)
        await refuse(
            self._parts,
            call,
            error,
            scope,
            send,
            kind=operation.kind,
            caller=asked.caller,
            standing=standing,
        )


class Page:
    """A path that needs no token and has one thing to show. An ASGI application."""

    def __init__(
        self,
        parts: ApiParts,
        show: Callable[[], tuple[int, bytes] | Awaitable[tuple[int, bytes]]],
        content_type: bytes,
    ) -> None:
        self._parts = parts
        self._show = show
        self._content_type = content_type

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = call_of(self._parts, scope)
        if scope["method"] not in ("GET", "HEAD"):
            await refuse(self._parts, call, not_allowed(scope, ("GET",)), scope, send)
            return
        shown = self._show()
        status, body = shown if isinstance(shown, tuple) else await shown
        headers: Headers = [
            (b"content-type", self._content_type),
            (b"cache-control", b"no-store"),
            (b"x-request-id", call.request_id.encode()),
        ]
        await respond(scope, send, status, headers, body)


class Metered:
    """The metered route where the edge did not take it: by another method, or by another spelling
    of its path. An ASGI application."""

    def __init__(self, parts: ApiParts) -> None:
        self._parts = parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error: RequestError = not_allowed(scope, ("POST",))
        if scope["method"] == "POST":
            error = NotFound("Write this path as it is: /api/v1/chat/completions, without escapes.")
        await refuse(self._parts, call_of(self._parts, scope), error, scope, send)


class Unknown:
    """Every path that is not a route. An ASGI application."""

    def __init__(self, parts: ApiParts) -> None:
        self._parts = parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = NotFound(
            f"There is no route {scope['path']!r:.200}. The base URL of clients ends in /api/v1, "
            "and of OpenAI's API there are /chat/completions and /models below it. "
            "GET /openapi.json lists the routes."
        )
        await refuse(self._parts, call_of(self._parts, scope), error, scope, send)


# --- from and to ASGI -----------------------------------------------------------------------------


def call_of(parts: ApiParts, scope: Scope) -> Call:
    headers: Mapping[bytes, bytes] = dict(scope["headers"])
    now = parts.clock.now()
    client = scope.get("client")
    return Call(
        new_id("req", now),
        now,
        parts.clock.monotonic(),
        client_address(
            client[0] if client else "", headers.get(b"x-forwarded-for"), parts.trusted_proxies
        ),
        headers.get(b"authorization"),
        b"",
        client_request_id=client_request_id(headers.get(b"x-request-id")),
    )


def operation_for(method: str, operations: Mapping[str, Operation]) -> Operation | None:
    return operations.get("GET" if method == "HEAD" else method)


def not_allowed(scope: Scope, methods: Sequence[str] | Mapping[str, object]) -> MethodNotAllowed:
    allowed = [m for method in methods for m in (("GET", "HEAD") if method == "GET" else (method,))]
    return MethodNotAllowed(
        f"{scope['path']!r:.200} takes {', '.join(allowed)} and not {scope['method']:.20}.",
        allow=", ".join(allowed),
    )


async def refuse(
    parts: ApiParts,
    call: Call,
    error: RequestError,
    scope: Scope,
    send: Send,
    *,
    kind: str = "none",
    caller: Caller | None = None,
    standing: Standing | None = None,
) -> None:
    reply = error_reply(error, call.request_id, standing)
    parts.observer.answered(kind, reply.status, call, caller, error)
    await respond(scope, send, reply.status, reply.headers, reply.body)


async def respond(scope: Scope, send: Send, status: int, headers: Headers, body: bytes) -> None:
    length = (b"content-length", b"%d" % len(body))
    if scope["method"] == "HEAD":
        body = b""
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})

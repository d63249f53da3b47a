"""JSON and event-stream replies, and the only place where an error becomes a status and a body.

Written as bytes, not through a framework: a plain reply is one write of its head and body together.
"""

import math
import re
from collections.abc import Callable, Mapping

import msgspec
from msgspec import Struct

from tollway import errors
from tollway.api.exchange import Exchange
from tollway.errors import RequestError
from tollway.gateway.types import Admission, Call, Standing, StoredReply
from tollway.ledger.base import Settlement
from tollway.rates.base import RateState

_encode = msgspec.json.Encoder().encode

Headers = list[tuple[bytes, bytes]]

_STATUSES: Mapping[type[RequestError], tuple[int, str]] = {
    errors.InvalidRequest: (400, "invalid_request_error"),
    errors.PayloadTooLarge: (413, "invalid_request_error"),
    errors.UnsupportedMediaType: (415, "invalid_request_error"),
    errors.HeadTooLarge: (431, "invalid_request_error"),
    errors.AuthenticationFailed: (401, "authentication_error"),
    errors.InsufficientCredits: (402, "insufficient_credits"),
    errors.PermissionDenied: (403, "permission_error"),
    errors.NotFound: (404, "invalid_request_error"),
    errors.MethodNotAllowed: (405, "invalid_request_error"),
    errors.IdempotencyConflict: (409, "idempotency_error"),
    errors.IdempotencyMismatch: (422, "idempotency_error"),
    errors.RateLimited: (429, "rate_limit_error"),
    errors.InternalFault: (500, "api_error"),
    errors.UpstreamFailed: (502, "api_error"),
    errors.Unavailable: (503, "api_error"),
    errors.UpstreamTimeout: (504, "api_error"),
    errors.DeadlinePassed: (504, "api_error"),
}


class ErrorReply(Struct, frozen=True):
    status: int
    headers: Headers
    body: bytes


def status_of(error: RequestError) -> int:
    return _STATUSES[type(error)][0]


def error_reply(
    error: RequestError, request_id: str, standing: Standing | None, *, charged: int = 0
) -> ErrorReply:
    """`standing` None: the account is not known, so neither its rate nor its credits are told."""
    status = status_of(error)
    fact = _fact(error, request_id)
    headers: Headers = [
        (b"content-type", b"application/json"),
        (b"x-request-id", request_id.encode()),
        (b"x-credits-consumed", b"%d" % charged),
    ]
    if standing is not None:
        headers.append((b"x-credits-remaining", b"%d" % standing.credits_available))
        headers += rate_headers(standing.rate)
    match error:
        case errors.InsufficientCredits():
            fact["required"] = error.required
            fact["available"] = error.available
            fact["affordable_max_tokens"] = error.affordable_output_tokens
            fact["why"] = error.why
        case errors.AuthenticationFailed():
            headers.append((b"www-authenticate", b"Bearer"))
        case errors.MethodNotAllowed():
            headers.append((b"allow", error.allow.encode()))
        case errors.RateLimited():
            fact["why"] = error.why
            headers += _retry_headers(error.retry_after_seconds)
        case errors.Unavailable() if error.retry_after_seconds is not None:
            headers += _retry_headers(error.retry_after_seconds)
        case errors.Unavailable() if not charged:  # a retry at once cannot help
            headers.append((b"x-should-retry", b"false"))
        case errors.IdempotencyConflict():
            headers.append((b"x-should-retry", b"true" if error.retry else b"false"))
            if error.retry:
                headers += _retry_headers(1.0)
        case errors.IdempotencyMismatch() | errors.DeadlinePassed():  # its time is over
            headers.append((b"x-should-retry", b"false"))
        case _:
            pass
    if charged and status >= 500:
        headers.append((b"x-should-retry", b"false"))
    body = {"error": fact, "message": error.message, "statusCode": status}
    return ErrorReply(status, headers, _encode(body))


def _fact(error: RequestError, request_id: str) -> dict[str, object]:
    return {
        "message": error.message,
        "type": _STATUSES[type(error)][1],
        "param": error.param,
        "code": error.code,
        "request_id": request_id,
    }


def rate_headers(state: RateState) -> Headers:
    return [
        (b"x-ratelimit-limit-requests", b"%d" % state.limit),
        (b"x-ratelimit-remaining-requests", b"%d" % state.remaining),
        (b"x-ratelimit-reset-requests", duration(state.reset_seconds).encode()),
    ]


def duration(seconds: float) -> str:
    """`0s`, `12s`, `1m3s`: whole seconds, rounded up, so that who waits that long does not come too
    early."""
    if not seconds:
        return "0s"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


def _retry_headers(seconds: float) -> Headers:
    return [
        (b"retry-after", b"%d" % min(60, max(1, math.ceil(seconds)))),
        (b"retry-after-ms", b"%d" % min(60_000, max(1, math.ceil(seconds * 1000)))),
    ]


_WHOLE_HEAD = (
    b"content-type: application/json\r\n"
    b"content-length: %d\r\n"
    b"x-request-id: %b\r\n"
    b"x-credits-consumed: %d\r\n"
    b"x-credits-remaining: %d\r\n"
    b"x-ratelimit-limit-requests: %d\r\n"
    b"x-ratelimit-remaining-requests: %d\r\n"
    b"x-ratelimit-reset-requests: %b\r\n"
)


class ChatReply(Struct):
    """Implements the gateway's `Reply` on one exchange of the edge."""

    _exchange: Exchange
    begun: bool = False
    _request_id: str = ""
    _chunked: bool = False
    _trailers: bool = False

    @property
    def gone(self) -> bool:
        return self._exchange.disconnected

    def on_pressure(self, listener: Callable[[bool], None]) -> None:
        self._exchange.on_pressure(listener)

    # --- a whole reply ----------------------------------------------------------------------------

    def complete(self, admission: Admission, settlement: Settlement, body: bytes) -> None:
        rate = admission.rate
        head = _WHOLE_HEAD % (
            len(body),
            admission.call.request_id.encode(),
            settlement.charged,
            settlement.available,
            rate.limit,
            rate.remaining,
            duration(rate.reset_seconds).encode() if rate.reset_seconds else b"0s",
        )
        if admission.ignored:
            head += _ignored_line(admission).encode()
        self._exchange.answer(200, head, body)

    def replay(self, request_id: str, reply: StoredReply, standing: Standing) -> None:
        body = reply.body.encode()
        head = (
            "content-type: application/json\r\n"
            f"content-length: {len(body)}\r\n"
            "idempotent-replayed: true\r\n"
            f"x-request-id: {request_id}\r\n"
            f"x-credits-consumed: {reply.credits_consumed}\r\n"
            f"x-credits-remaining: {reply.credits_remaining}\r\n"
            f"{_rate_lines(standing.rate)}"
        )
        self._exchange.answer(200, head.encode(), body)

    def refuse(
        self, call: Call, error: RequestError, standing: Standing | None, *, charged: int = 0
    ) -> None:
        reply = error_reply(error, call.request_id, standing, charged=charged)
        send(self._exchange, reply)

    # --- a stream ---------------------------------------------------------------------------------

    def begin(self, admission: Admission) -> None:
        self.begun = True
        self._request_id = admission.call.request_id
        self._chunked = self._exchange.head.http_1_1
        self._trailers = self._chunked and self._exchange.head.accepts_trailers
        head = (
            "content-type: text/event-stream; charset=utf-8\r\n"
            "cache-control: no-cache\r\n"
            "x-accel-buffering: no\r\n"
            f"x-request-id: {admission.call.request_id}\r\n"
            f"x-credits-reserved: {admission.hold.amount}\r\n"
            f"x-credits-remaining: {admission.hold.available}\r\n"
            f"{_rate_lines(admission.rate)}{_ignored_line(admission)}"
        )
        if self._chunked:
            head += "transfer-encoding: chunked\r\n"
        if self._trailers:
            head += "trailer: X-Credits-Consumed, X-Credits-Remaining\r\n"
        self._exchange.send_head(200, head.encode())

    def write(self, events: bytes) -> None:
        self._exchange.write_now(
            b"%x\r\n%b\r\n" % (len(events), events) if self._chunked else events
        )

    def write_soon(self, events: bytes, sent: Callable[[], None]) -> None:
        data = b"%x\r\n%b\r\n" % (len(events), events) if self._chunked else events
        self._exchange.write_soon(data, sent)

    def flush(self) -> None:
        self._exchange.flush()

    def end_stream(self, settlement: Settlement, usage_event: bytes) -> None:
        credits = usage_event or _credits_comment(settlement)
        self.write(credits + b"data: [DONE]\n\n")
        self._end(settlement)

    def break_stream(self, settlement: Settlement, error: RequestError) -> None:
        event = b"data: " + _encode({"error": _fact(error, self._request_id)}) + b"\n\n"
        self.write(_credits_comment(settlement) + event)
        self._end(settlement)

    def _end(self, settlement: Settlement) -> None:
        if self._trailers:
            self._exchange.write_now(
                b"0\r\nX-Credits-Consumed: %d\r\nX-Credits-Remaining: %d\r\n\r\n"
                % (settlement.charged, settlement.available)
            )
        elif self._chunked:
            self._exchange.write_now(b"0\r\n\r\n")
        self._exchange.end()


def send(exchange: Exchange, reply: ErrorReply) -> None:
    lines = b"".join(b"%b: %b\r\n" % header for header in reply.headers)
    lines += b"content-length: %d\r\n" % len(reply.body)
    exchange.answer(reply.status, lines, reply.body)


def _rate_lines(rate: RateState) -> str:
    return (
        f"x-ratelimit-limit-requests: {rate.limit}\r\n"
        f"x-ratelimit-remaining-requests: {rate.remaining}\r\n"
        f"x-ratelimit-reset-requests: {duration(rate.reset_seconds)}\r\n"
    )


_IGNORED_CHARACTERS_MAX = 1024
_is_safe = re.compile(r"[A-Za-z0-9_.-]{1,100}").fullmatch


def _ignored_line(admission: Admission) -> str:
    """Names come from the client: only what is safe in a header is told back."""
    if not admission.ignored:
        return ""
    safe = [name for name in admission.ignored if _is_safe(name)]
    return (
        f"x-tollway-ignored-params: {', '.join(safe)[:_IGNORED_CHARACTERS_MAX]}\r\n" if safe else ""
    )


def _credits_comment(settlement: Settlement) -> bytes:
    return b": credits consumed=%d remaining=%d\n\n" % (settlement.charged, settlement.available)

"""Every error that Tollway raises on purpose.

    TollwayError
    ├── ConfigurationError          the settings cannot be used; names the key and the mend
    ├── StartError                  the program cannot start (data directory in use, no model)
    ├── Refused                     a command was understood and declined; says why
    └── RequestError                ends one API request; `api/replies.py` gives each its status
        ├── InvalidRequest          the request itself is wrong; `param` names where
        │   ├── PayloadTooLarge
        │   ├── UnsupportedMediaType
        │   └── HeadTooLarge
        ├── AuthenticationFailed    no usable token
        ├── InsufficientCredits     balance or ceiling does not cover the most it could cost
        ├── PermissionDenied        the token or the account may not do this
        ├── NotFound                no such route, model, receipt or token
        ├── MethodNotAllowed
        ├── IdempotencyConflict     the key's first request is running, or has completed
        ├── IdempotencyMismatch     the key was used with another body
        ├── RateLimited             too many requests in a minute, or at a time
        ├── Unavailable             Tollway or every upstream cannot take the request now
        ├── UpstreamFailed          an upstream answered wrongly, or stopped in the middle
        ├── UpstreamTimeout         an upstream took too long
        │   └── DeadlinePassed      longer than the client itself allowed
        └── InternalFault           a fault of Tollway itself

A message says what was wrong and what to do, with the numbers. None of them ever holds a secret
or an upstream's body. A refusal by a limit says which one it was, for programs: its `why`.
"""

from typing import Literal

from msgspec import Struct

CreditsLimit = Literal["balance", "spend_cap", "credits_max"]
RateLimit = Literal[
    "requests_per_minute",
    "token_requests_per_minute",
    "concurrent_requests",
    "other_requests_per_minute",
    "failed_authentications_per_minute",
]


class CreditsWhy(Struct, frozen=True):
    """The limit that refused, all in credits: the account's balance, the token's spend cap or the
    request's own X-Credits-Max. `held` is held within it for requests in flight, which may give
    some of it back; `available` is what it leaves."""

    limit: CreditsLimit
    value: int
    held: int
    available: int


class RateWhy(Struct, frozen=True, rename="camel"):
    """The limit that refused: `value` requests. `freeAfterSeconds` is when the next place is free;
    of requests at a time nobody knows, and it is when to look again."""

    limit: RateLimit
    value: int
    free_after_seconds: float


def how_many(count: int, what: str) -> str:
    """As messages say it: 1 credit, 2 credits."""
    return f"{count} {what}" if abs(count) == 1 else f"{count} {what}s"


class TollwayError(Exception):
    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ConfigurationError(TollwayError):
    pass


class StartError(TollwayError):
    pass


class Refused(TollwayError):
    pass


class RequestError(TollwayError):
    """`code` is what a program tells cases apart by; `param` the request field at fault."""

    upstream_status: int | None = None
    """The HTTP status of the upstream's answer behind this error, for the receipt; None where there
    was none."""
    upstream_rest_seconds: float | None = None
    """How long the upstream asked to be left alone, in its Retry-After; None where it did not."""
    was_sent: bool = True
    """False where no upstream can have got the request: no connection, no place in a queue."""

    def __init__(self, message: str, *, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


class InvalidRequest(RequestError):
    def __init__(
        self, message: str, *, code: str = "invalid_value", param: str | None = None
    ) -> None:
        super().__init__(message, code=code, param=param)


def context_exceeded(
    context_length: int | None = None, input_tokens: int | None = None
) -> InvalidRequest:
    """In the words of OpenAI and Anthropic: clients shorten a conversation when they find those in
    the text of an exception, of which an SDK leaves out the code."""
    if context_length is None:
        message = (
            "This model's maximum context length is exceeded: the prompt is too long. Reduce the "
            "length of the messages, or lower max_tokens."
        )
    else:
        message = (
            f"This model's maximum context length is {context_length} tokens. However, your "
            f"messages resulted in {input_tokens} tokens, and the reply must fit too. The prompt "
            "is too long: reduce the length of the messages."
        )
    return InvalidRequest(message, code="context_length_exceeded", param="messages")


class PayloadTooLarge(InvalidRequest):
    def __init__(self, message: str) -> None:
        super().__init__(message, code="payload_too_large")


class UnsupportedMediaType(InvalidRequest):
    def __init__(self, message: str) -> None:
        super().__init__(message, code="unsupported_media_type")


class HeadTooLarge(InvalidRequest):
    def __init__(self, message: str) -> None:
        super().__init__(message, code="request_header_fields_too_large")


class AuthenticationFailed(RequestError):
    """Codes: invalid_api_key (malformed, unknown and revoked alike), token_expired, and
    token_revoked where that happened while the request was on its way."""

    def __init__(self, message: str, *, code: str = "invalid_api_key") -> None:
        super().__init__(message, code=code)


class InsufficientCredits(RequestError):
    """`required` is credits; `affordable_output_tokens` is None where fewer than 16 could be
    paid."""

    def __init__(
        self, message: str, *, required: int, affordable_output_tokens: int | None, why: CreditsWhy
    ) -> None:
        super().__init__(message, code="insufficient_credits")
        self.required = required
        self.affordable_output_tokens = affordable_output_tokens
        self.why = why

    @property
    def available(self) -> int:
        return self.why.available


class PermissionDenied(RequestError):
    """Codes: insufficient_scope, account_frozen."""


class NotFound(RequestError):
    def __init__(self, message: str, *, code: str = "not_found", param: str | None = None) -> None:
        super().__init__(message, code=code, param=param)


class MethodNotAllowed(RequestError):
    def __init__(self, message: str, *, allow: str) -> None:
        super().__init__(message, code="method_not_allowed")
        self.allow = allow


class IdempotencyConflict(RequestError):
    """Codes: idempotency_in_progress (`retry` true), idempotency_completed."""

    def __init__(self, message: str, *, code: str, retry: bool) -> None:
        super().__init__(message, code=code)
        self.retry = retry


class IdempotencyMismatch(RequestError):
    def __init__(self, message: str) -> None:
        super().__init__(message, code="idempotency_key_reused")


class RateLimited(RequestError):
    """Codes: rate_limit_exceeded, concurrency_limit_exceeded."""

    def __init__(self, message: str, why: RateWhy) -> None:
        at_a_time = why.limit == "concurrent_requests"
        super().__init__(
            message, code="concurrency_limit_exceeded" if at_a_time else "rate_limit_exceeded"
        )
        self.why = why

    @property
    def retry_after_seconds(self) -> float:
        return self.why.free_after_seconds


class Unavailable(RequestError):
    """Codes: overloaded (come back in `retry_after_seconds`), unavailable."""

    def __init__(
        self,
        message: str,
        *,
        code: str = "unavailable",
        retry_after_seconds: float | None = None,
        was_sent: bool = True,
    ) -> None:
        super().__init__(message, code=code)
        self.retry_after_seconds = retry_after_seconds
        self.was_sent = was_sent


class UpstreamFailed(RequestError):
    """`upstream_status` is the HTTP status that it answered with, None where it did not."""

    def __init__(self, message: str, upstream_status: int | None = None) -> None:
        super().__init__(message, code="upstream_error")
        self.upstream_status = upstream_status


class UpstreamTimeout(RequestError):
    def __init__(self, message: str, *, was_sent: bool = True) -> None:
        super().__init__(message, code="upstream_timeout")
        self.was_sent = was_sent


class DeadlinePassed(UpstreamTimeout):
    pass


class InternalFault(RequestError):
    def __init__(self) -> None:
        super().__init__(
            "Tollway failed on a fault of its own. Tell its operator this request's id.",
            code="internal_error",
        )

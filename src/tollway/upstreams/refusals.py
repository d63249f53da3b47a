"""What it means when a model's server refuses a request, in whichever of their shapes it says so.

The client is told what it can do something about. The rest is the operator's trouble: the client
gets a 502, 503 or 504, and the log says what to look at. Nothing of a server's own words is passed
on: providers echo keys in them.
"""

import logging
import math
import re
import time
from collections.abc import Callable, Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, cast

import msgspec
from msgspec import Struct

from tollway.errors import (
    InvalidRequest,
    RequestError,
    Unavailable,
    UpstreamFailed,
    UpstreamTimeout,
    context_exceeded,
)
from tollway.upstreams.complaints import Complaints
from tollway.upstreams.connection import RetryAfter
from tollway.upstreams.dialects import TOO_BUSY, TOO_LONG
from tollway.wire.requests import KNOWN_FIELDS

ERROR_BYTES_READ = 64 * 1024
_RETRY_AFTER_SECONDS_MAX = 60.0
_RETRY_AFTER_SECONDS = 5.0
_REST_SECONDS_MAX = 3600.0


class ErrorFacts(Struct, frozen=True):
    """What an error says, read and never passed on. `status` is the HTTP status that some put into
    the body, also of a reply whose own says 200."""

    message: str = ""
    type: str = ""
    param: str = ""
    code: str = ""
    status: int | None = None
    retry_after_seconds: float | None = None


# Said with a status that blames the request, of something that only the operator can mend:
# Gemini's 400 for a wrong key, Anthropic's 400 and OpenAI's 429 for an account without money.
_OPERATORS = re.compile(
    r"api.?key (?:not valid|expired|invalid|not found)|credit balance is too low"
    r"|insufficient_quota|billing_hard_limit|billing_not_active",
    re.IGNORECASE,
)
# Azure's content filter and OpenRouter's moderation refuse what was said, and so does Gemini.
_CONTENT_POLICY = re.compile(
    r"content.?filter|content.?policy|content management policy|moderation|flagged|safety system",
    re.IGNORECASE,
)
# Anthropic holds an image to the kind that it is named as; others look at its bytes.
_IMAGE_KIND = re.compile(r"image does not match|image was specified using", re.IGNORECASE)
# Groq tells it as a 400 when the model wrote a call that is none.
_MODELS_FAILURE = re.compile(r"tool_use_failed|json_validate_failed|output_parse_failed")
_NOT_SUPPORTED = re.compile(
    r"unsupported|not supported|does not support|unknown name|unrecognized|extra_forbidden"
    r"|extra inputs|unexpected",
    re.IGNORECASE,
)


def read_error(body: bytes) -> ErrorFacts:
    """OpenAI's `{"error": {...}}`; the same fields at the top (older vLLM, SGLang, Mistral); the
    error as text (TGI), in a list (Gemini), or as FastAPI's `detail`."""
    try:
        value: object = msgspec.json.decode(body[:ERROR_BYTES_READ])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ErrorFacts()
    if isinstance(value, list) and value:
        value = cast("list[object]", value)[0]
    if not isinstance(value, dict):
        return ErrorFacts()
    return _facts(cast("Mapping[str, Any]", value))


def _facts(document: Mapping[str, Any]) -> ErrorFacts:
    of: Any = document.get("error", document)
    if isinstance(of, str):
        of = {"message": of}
    if not isinstance(of, dict):
        return ErrorFacts()
    facts = cast("Mapping[str, Any]", of)
    details = _details(facts)
    message = facts.get("message")
    code = facts.get("code")
    param = facts.get("param")
    return ErrorFacts(
        message=message if isinstance(message, str) else _joined(details),
        type=_text(facts.get("type")),
        param=param if isinstance(param, str) else _field_of(facts, details),
        code=_text(code),
        status=code if isinstance(code, int) and 400 <= code < 600 else None,
        retry_after_seconds=_retry_delay(details),
    )


def _details(facts: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """FastAPI's and Mistral's list of what is wrong where, Google's list of details."""
    for of in (facts.get("message"), facts):
        found: Any = of
        if isinstance(of, dict):
            mapping = cast("Mapping[str, Any]", of)
            found = mapping.get("detail", mapping.get("details"))
        if isinstance(found, list):
            items = cast("list[Any]", found)
            return [cast("Mapping[str, Any]", item) for item in items if isinstance(item, dict)]
    return []


def _joined(details: list[Mapping[str, Any]]) -> str:
    return " ".join(_text(detail.get(of)) for detail in details for of in ("type", "msg"))


_UNKNOWN_NAME = re.compile(r'[Uu]nknown name "(\w+)"')


def _field_of(facts: Mapping[str, Any], details: list[Mapping[str, Any]]) -> str:
    """Where the error names a field and has no `param`: `loc` is `["body", "seed"]`."""
    for detail in details:
        place: Any = detail.get("loc")
        if isinstance(place, list) and len(cast("list[Any]", place)) > 1:
            return _text(cast("list[Any]", place)[1])
    named = _UNKNOWN_NAME.search(_text(facts.get("message")))
    return "" if named is None else named[1]


def _retry_delay(details: list[Mapping[str, Any]]) -> float | None:
    """Google's RetryInfo: `{"retryDelay": "34s"}`."""
    for detail in details:
        said = _text(detail.get("retryDelay")).removesuffix("s")
        if re.fullmatch(r"\d{1,6}(\.\d{1,9})?", said):
            return float(said)
    return None


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


# --- what the client is told ----------------------------------------------------------------------


def refusal(
    upstream: str,
    model: str,
    status: int,
    body: bytes,
    retry_after: RetryAfter = (),
    now: Callable[[], float] = time.time,
) -> RequestError:
    """`model` is the upstream's own name for what it was asked for."""
    facts = read_error(body)
    if status < 400 and facts.status is not None:
        status = facts.status
    seconds = _seconds_asked(dict(retry_after), now)
    if seconds is None:
        seconds = facts.retry_after_seconds
    error = _refusal(upstream, model, status, facts, seconds)
    error.upstream_status = status
    error.upstream_rest_seconds = _rest_seconds(seconds)
    return error


def _refusal(
    upstream: str, model: str, status: int, facts: ErrorFacts, seconds_asked: float | None
) -> RequestError:
    said = f"{facts.code} {facts.type} {facts.message}"
    if status in (400, 413, 422) and _MODELS_FAILURE.search(facts.code) is not None:
        return UpstreamFailed("The model wrote a tool call or JSON that is none. Try again.")
    if status in (400, 403, 429) and _OPERATORS.search(said) is not None:
        return _operators(upstream, model, status)
    if status in (400, 413, 422):
        return _told(upstream, status, _refused_as_invalid(facts, said))
    if status == 403 and TOO_LONG.search(facts.message) is not None:
        return context_exceeded()
    if status == 403 and _CONTENT_POLICY.search(said) is not None:
        return _refused_by_policy()
    if status in (401, 402, 403, 404):
        return _operators(upstream, model, status)
    if status in (408, 504):
        late = UpstreamTimeout("The model's server gave up waiting for the model. Try again.")
        return _told(upstream, status, late)
    if status in TOO_BUSY:
        wait = _retry_after_seconds(seconds_asked)
        busy = Unavailable(
            f"The model is at its capacity. Try again in {wait:g} s.",
            code="overloaded",
            retry_after_seconds=wait,
        )
        return _told(upstream, status, busy)
    failed = UpstreamFailed(f"The model's server failed with status {status}. Try again.")
    return _told(upstream, status, failed, logging.ERROR)


def _operators(upstream: str, model: str, status: int) -> Unavailable:
    if status == 404:
        what = f"it has no model {model!r}, or its base_url is wrong (most end in /v1)"
    else:
        what = "its key or its credit is refused"
    said = f"upstream {upstream} answered {status}: {what}"
    _complaints.tell(logging.ERROR, (upstream, status, model), said)
    return Unavailable("The model is not available: its operator finds why in the log.")


def _told(
    upstream: str, status: int, error: RequestError, level: int = logging.WARNING
) -> RequestError:
    about = f" because of {error.param}" if error.param else ""
    said = f"upstream {upstream} answered {status}{about}"
    _complaints.tell(level, (upstream, status), said)
    return error


_complaints = Complaints()


def _refused_as_invalid(facts: ErrorFacts, said: str) -> InvalidRequest:
    if "context" in facts.code + facts.type or TOO_LONG.search(facts.message) is not None:
        return context_exceeded()
    if _CONTENT_POLICY.search(said) is not None:
        return _refused_by_policy()
    if _IMAGE_KIND.search(facts.message) is not None:
        return InvalidRequest(
            "The model's server takes an image only as the kind that it is: a PNG as "
            "data:image/png;base64,... and a JPEG as data:image/jpeg;base64,...",
            param="messages",
        )
    named = re.split(r"[.\[]", facts.param, maxsplit=1)[0]
    param = named if named in KNOWN_FIELDS else None  # nothing else: it may be anything
    about = f" because of {param}" if param else ""
    unsupported = param is not None and _NOT_SUPPORTED.search(said) is not None
    return InvalidRequest(
        f"The model's server refused this request as invalid{about}. It may not support one of its "
        "fields.",
        code="unsupported_parameter" if unsupported else "invalid_value",
        param=param,
    )


def _refused_by_policy() -> InvalidRequest:
    return InvalidRequest(
        "The model's server refused the messages by its content policy. Change what they say.",
        param="messages",
    )


def _rest_seconds(asked: float | None) -> float | None:
    return min(asked, _REST_SECONDS_MAX) if asked is not None and asked > 0 else None


def _retry_after_seconds(asked: float | None) -> float:
    seconds = _RETRY_AFTER_SECONDS if asked is None else asked
    return min(seconds, _RETRY_AFTER_SECONDS_MAX) if seconds > 1 else 1.0


def _seconds_asked(lines: Mapping[bytes, bytes], now: Callable[[], float]) -> float | None:
    """As OpenAI's SDKs read them: milliseconds first, then seconds or a date (RFC 9110, 10.2.3).
    `x-ratelimit-reset-...` says when all of a limit is free again, which is far too late."""
    milliseconds = _number(lines.get(b"retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    said = lines.get(b"retry-after")
    seconds = _number(said)
    if seconds is not None or said is None:
        return seconds
    try:
        date = parsedate_to_datetime(said.decode("ascii"))
    except (ValueError, IndexError, OverflowError):
        return None
    if date.tzinfo is None:  # "-0000": a time in UTC of which no zone is known
        date = date.replace(tzinfo=UTC)
    return math.ceil(date.timestamp() - now())


def _number(text: bytes | None) -> float | None:
    try:
        number = float(text) if text else None
    except ValueError:
        return None
    return None if number is None or math.isnan(number) else number

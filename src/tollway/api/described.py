"""What `/openapi.json` tells in words: the operations, the refusals and the headers.

What no type can say is in the descriptions: which fields exclude each other, which headers come
when.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from msgspec import Struct

from tollway.api.accounts import (
    LIMIT_DEFAULT,
    LIMIT_MAX,
    PAGE_MAX,
    AccountObject,
    TransactionList,
)
from tollway.api.models import ModelList, ModelObject
from tollway.api.quote import Quote
from tollway.api.receipts import ReceiptObject
from tollway.api.tokens import IssuedToken, TokenAsk, TokenList, TokenObject
from tollway.wire.chat import ChatCompletion, ChatRequest

Json = dict[str, Any]
"""Any: a JSON document."""


@dataclass(frozen=True, slots=True)
class DescribedOperation:
    """`refusals` are its statuses beside `COMMON_REFUSALS`."""

    path: str
    method: str
    id: str
    summary: str
    description: str
    scope: str | None
    success: int
    reply: type[Struct]
    refusals: tuple[int, ...] = ()
    body: type[Struct] | None = None
    parameters: tuple[Json, ...] = ()


_BODY_REFUSALS = (413, 415)
_SCOPE_REFUSALS = (403,)
COMMON_REFUSALS = (400, 401, 429, 431, 500, 503)
PAGE_REFUSALS = (400, 431)


def _path_parameter(name: str, description: str) -> Json:
    schema = {"type": "string", "minLength": 1}
    return {
        "name": name,
        "in": "path",
        "required": True,
        "schema": schema,
        "description": description,
    }


def _query_parameter(name: str, most: int, default: int) -> Json:
    schema = {"type": "integer", "minimum": 1, "maximum": most, "default": default}
    return {"name": name, "in": "query", "required": False, "schema": schema}


def _header_parameter(name: str, description: str, schema: Json) -> Json:
    return {
        "name": name,
        "in": "header",
        "required": False,
        "schema": schema,
        "description": description,
    }


CHAT = DescribedOperation(
    "/chat/completions",
    "post",
    "createChatCompletion",
    "Ask a model",
    "OpenAI's chat completions. The most that the request can cost is held first, what it did cost "
    "is charged before the reply ends, and the rest is given back.\n\n"
    "Besides what the schema says: `max_tokens` and `max_completion_tokens` must be equal where "
    "both are given; `stream_options` needs `stream`, and `top_logprobs` needs `logprobs`; "
    "`tool_choice` must name one of the `tools`; a tool message must answer a call of an assistant "
    "message before it; images need a model that has a price for them; audio and files have "
    "none and are refused. Fields that are not listed, or that the model does not support, are "
    "ignored and named in `X-Tollway-Ignored-Params`; with a strict token they are refused.",
    "llm-all",
    200,
    ChatCompletion,
    (402, *_SCOPE_REFUSALS, 404, 409, *_BODY_REFUSALS, 422, 502, 504),
    ChatRequest,
    (
        _header_parameter(
            "X-Credits-Max",
            "Refuse the request (402) rather than let it cost more credits than this.",
            {"type": "string", "pattern": "^[0-9]{1,15}$"},
        ),
        _header_parameter(
            "Idempotency-Key",
            "The same key and body within a day do not pay again: 409 while the first runs, then "
            "its reply (with `Idempotent-Replayed: true`) where replies are stored, else 409.",
            {"type": "string", "minLength": 1, "maxLength": 255},
        ),
        _header_parameter(
            "X-Tollway-Timeout-Ms",
            "Milliseconds from the request's arrival within which the reply must be there, all "
            "attempts included; shortens the upstream's deadlines and never lengthens them. When "
            "they are over: 504 before the first byte, else an error event at the end of the "
            "stream.",
            {"type": "string", "pattern": "^0*[1-9][0-9]*$", "maxLength": 15},
        ),
        _header_parameter(
            "X-Session-Id",
            "Of a conversation or an agent's run: requests with the same one go to the same server "
            "of the model, where it is set up to keep what they have in common.",
            {"type": "string"},
        ),
        _header_parameter(
            "X-Request-Id",
            "Kept on the receipt as `clientRequestId`; the request's own id is always Tollway's.",
            {"type": "string"},
        ),
    ),
)

OPERATIONS = (
    CHAT,
    DescribedOperation(
        "/chat/completions/quote",
        "post",
        "quoteChatCompletion",
        "Ask what a request could cost",
        "Takes the same body as the request itself. Runs nothing and charges nothing.",
        "llm-all",
        200,
        Quote,
        (*_SCOPE_REFUSALS, 404, *_BODY_REFUSALS, 502, 504),
        ChatRequest,
    ),
    DescribedOperation(
        "/models",
        "get",
        "listModels",
        "List the models that this token may use",
        "Prices are whole credits per million tokens.",
        "llm-all",
        200,
        ModelList,
        _SCOPE_REFUSALS,
    ),
    DescribedOperation(
        "/models/{model_id}",
        "get",
        "showModel",
        "Show one model",
        "A slash in the id may be sent as itself or as `%2F`.",
        "llm-all",
        200,
        ModelObject,
        (*_SCOPE_REFUSALS, 404),
        parameters=(_path_parameter("model_id", "For example `tollway/smollm2-135m`."),),
    ),
    DescribedOperation(
        "/accounts/me",
        "get",
        "showAccount",
        "Show the token's account",
        "`creditBalance` has in it what is held for requests in flight (`creditsHeld`).",
        None,
        200,
        AccountObject,
    ),
    DescribedOperation(
        "/credit-transactions",
        "get",
        "listTransactions",
        "List what changed the account's credit, newest first",
        "`amount` is negative for a charge, and `balance` is what it left.",
        None,
        200,
        TransactionList,
        parameters=(
            _query_parameter("page", PAGE_MAX, 1),
            _query_parameter("limit", LIMIT_MAX, LIMIT_DEFAULT),
        ),
    ),
    DescribedOperation(
        "/receipts/{request_id}",
        "get",
        "showReceipt",
        "Show what a request used and cost",
        "By its `X-Request-Id`. Every request that had credit held has one, from its settlement "
        "on, which is before its client sees the end of the reply.",
        None,
        200,
        ReceiptObject,
        (404,),
        parameters=(
            _path_parameter("request_id", "`req_` and 32 hexadecimal digits."),
            {
                "name": "signed",
                "in": "query",
                "required": False,
                "schema": {"type": "boolean", "default": False},
                "description": "Sign it, so that `tollway receipt verify` or anybody with the "
                "public key can check it without the server.",
            },
        ),
    ),
    DescribedOperation(
        "/auth/pat",
        "post",
        "issueToken",
        "Issue a personal access token",
        "Its secret is shown in this reply and never again. It gets no scope, model or lifetime "
        "beyond those of the token that issues it; a token with a spend cap or a rate of its own "
        "issues none. The name must be printable.",
        "account",
        201,
        IssuedToken,
        (*_SCOPE_REFUSALS, *_BODY_REFUSALS),
        TokenAsk,
    ),
    DescribedOperation(
        "/auth/pat",
        "get",
        "listTokens",
        "List the account's tokens",
        "Revoked and expired ones too; never a secret.",
        "account",
        200,
        TokenList,
        _SCOPE_REFUSALS,
    ),
    DescribedOperation(
        "/auth/pat/{token_id}",
        "delete",
        "revokeToken",
        "Revoke a token",
        "It is refused from the next request on. Revoking it again changes nothing.",
        "account",
        200,
        TokenObject,
        (*_SCOPE_REFUSALS, 404),
        parameters=(_path_parameter("token_id", "`tok_` and 32 hexadecimal digits."),),
    ),
)

REFUSALS: Mapping[int, tuple[str, tuple[str, ...]]] = {
    400: (
        "The request is wrong: `code` is invalid_value, missing_required_parameter, "
        "unsupported_parameter, context_length_exceeded, invalid_json or invalid_http, and `param` "
        "names the field. A body is one JSON object, at most 32 deep and of at most 65,536 values, "
        "which are all that is in its objects and arrays.",
        (),
    ),
    401: (
        "There is no usable token: invalid_api_key (malformed, unknown or revoked), token_expired, "
        "or token_revoked for one that was revoked while the request was on its way.",
        ("WWW-Authenticate",),
    ),
    402: (
        "Balance, spend cap or X-Credits-Max does not cover the most this could cost.",
        (),
    ),
    403: ("insufficient_scope, or account_frozen.", ()),
    404: ("model_not_found or not_found.", ()),
    409: (
        "idempotency_in_progress (try again after `Retry-After`) or idempotency_completed.",
        ("X-Should-Retry",),
    ),
    413: ("payload_too_large: the body is larger than 4 MiB.", ()),
    415: ("unsupported_media_type: the body is not JSON, or is compressed.", ()),
    422: (
        "idempotency_key_reused: the Idempotency-Key was used with another body.",
        ("X-Should-Retry",),
    ),
    429: (
        "rate_limit_exceeded or concurrency_limit_exceeded. For a request without a usable token: "
        "too many of them came from its address.",
        ("Retry-After", "Retry-After-Ms"),
    ),
    431: ("The request's head is larger than 32 KiB.", ()),
    500: ("A fault of Tollway's own.", ()),
    502: ("The model's server failed.", ()),
    503: ("overloaded (try again after `Retry-After`) or unavailable.", ()),
    504: (
        "The model's server took too long, or longer than `X-Tollway-Timeout-Ms` allows.",
        (),
    ),
}
"""What each status says, and the headers that it has beside `REFUSAL_HEADERS`."""

HEADERS: Mapping[str, tuple[str, Json]] = {
    "X-Request-Id": ("The request's id.", {"type": "string", "pattern": "^req_[0-9a-f]{32}$"}),
    "X-RateLimit-Limit-Requests": (
        "Requests that this route's limit allows in any 60 seconds. The three headers are left out "
        "while the account is not known.",
        {"type": "string", "pattern": "^[0-9]+$"},
    ),
    "X-RateLimit-Remaining-Requests": (
        "Requests that are left now.",
        {"type": "string", "pattern": "^[0-9]+$"},
    ),
    "X-RateLimit-Reset-Requests": (
        "Until the next place is free, for example `12s` or `1m3s`.",
        {"type": "string", "pattern": "^([0-9]+m)?[0-9]+s$"},
    ),
    "X-Credits-Consumed": (
        "Credits that the request cost.",
        {"type": "string", "pattern": "^[0-9]+$"},
    ),
    "X-Credits-Remaining": (
        "The account's balance less what is held for its other requests.",
        {"type": "string", "pattern": "^[0-9]+$"},
    ),
    "X-Credits-Reserved": (
        "On a stream alone: the most that it can cost.",
        {"type": "string", "pattern": "^[0-9]+$"},
    ),
    "X-Tollway-Ignored-Params": (
        "The request's fields that were ignored.",
        {"type": "string"},
    ),
    "X-Should-Retry": (
        "`false` where a retry cannot help, or where something was charged.",
        {"type": "string", "enum": ["true", "false"]},
    ),
    "WWW-Authenticate": ("`Bearer`", {"type": "string"}),
    "Retry-After": ("Seconds, 1 to 60.", {"type": "string", "pattern": "^[0-9]+$"}),
    "Retry-After-Ms": ("Milliseconds.", {"type": "string", "pattern": "^[0-9]+$"}),
}
"""What each says, and its schema."""

ALWAYS_SENT = frozenset({"X-Request-Id", "WWW-Authenticate"})
_RATE_HEADERS = (
    "X-RateLimit-Limit-Requests",
    "X-RateLimit-Remaining-Requests",
    "X-RateLimit-Reset-Requests",
)
SUCCESS_HEADERS = ("X-Request-Id", *_RATE_HEADERS)
REFUSAL_HEADERS = (*SUCCESS_HEADERS, "X-Credits-Consumed", "X-Credits-Remaining", "X-Should-Retry")
COMPLETION_HEADERS = (
    *SUCCESS_HEADERS,
    "X-Credits-Consumed",
    "X-Credits-Remaining",
    "X-Credits-Reserved",
    "X-Tollway-Ignored-Params",
)

STREAM = (
    "With `stream: true`. Server-sent events: each `data:` is a ChatCompletionChunk, the last one "
    "is `[DONE]`. With `stream_options.include_usage` the chunk before it has no choices and the "
    "usage with its credits; else a comment `: credits consumed=N remaining=M` has them. A failure "
    'after the first byte is one event `{"error": {...}}`, and then the stream ends without '
    "`[DONE]`."
)

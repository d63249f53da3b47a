"""`/openapi.json`: the API described in OpenAPI 3.1, from the types that validate and that reply.

What no type can say is in words, in the descriptions: which fields exclude each other, which
headers come when. `tests/unit/api/test_openapi.py` holds the paths to the routes and the replies to
the schemas.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from tollway.api.accounts import (
    LIMIT_DEFAULT,
    LIMIT_MAX,
    PAGE_MAX,
    AccountObject,
    IssuedToken,
    TokenAsk,
    TokenList,
    TokenObject,
    TransactionList,
)
from tollway.api.health import Health
from tollway.api.models import ModelList, ModelObject
from tollway.api.quote import Quote
from tollway.api.receipts import ReceiptKey, ReceiptObject
from tollway.errors import CreditsWhy, RateWhy
from tollway.metrics.exposition import CONTENT_TYPE
from tollway.wire.chat import (
    ChatCompletion,
    ChatRequest,
    Choice,
    Logprobs,
    ReplyMessage,
    ReplyToolCall,
    TokenLogprob,
    TopLogprob,
)
from tollway.wire.events import Chunk, ChunkChoice, Delta

BASE = "/api/v1"

Json = dict[str, Any]
"""Any: a JSON document."""


class CompletionUsage(Struct):
    """What was charged for, and the credits. The details are the upstream's, where it gives any."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    credits_consumed: int
    credits_remaining: int
    prompt_tokens_details: dict[str, Any] | UnsetType = UNSET
    completion_tokens_details: dict[str, Any] | UnsetType = UNSET


class ErrorFact(Struct):
    """`required`, `available` and `affordable_max_tokens` come with 402 alone, `why` with 402 and
    429: which limit it was, its value, what is held or when it is free."""

    message: str
    type: Literal[
        "invalid_request_error",
        "authentication_error",
        "insufficient_credits",
        "permission_error",
        "idempotency_error",
        "rate_limit_error",
        "api_error",
    ]
    param: str | None
    code: str
    request_id: str
    required: int | UnsetType = UNSET
    available: int | UnsetType = UNSET
    affordable_max_tokens: int | UnsetType | None = UNSET
    why: dict[str, Any] | UnsetType = UNSET


class ErrorBody(Struct, rename={"status_code": "statusCode"}):
    """`error` is OpenAI's object; the outer two are for clients of the flat form."""

    error: ErrorFact
    message: str
    status_code: int


@dataclass(frozen=True, slots=True)
class _Described:
    """One operation. `refusals` are its statuses beside those that every operation can have."""

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


# --- the operations -------------------------------------------------------------------------------

_OF_A_BODY = (413, 415)
_OF_A_SCOPE = (403,)
_OF_EVERY = (400, 401, 429, 431, 500, 503)
_OF_A_PAGE = (400, 431)


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


_CHAT = _Described(
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
    (402, *_OF_A_SCOPE, 404, 409, *_OF_A_BODY, 422, 502, 504),
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

_OPERATIONS = (
    _CHAT,
    _Described(
        "/chat/completions/quote",
        "post",
        "quoteChatCompletion",
        "Ask what a request could cost",
        "Takes the same body as the request itself. Runs nothing and charges nothing.",
        "llm-all",
        200,
        Quote,
        (*_OF_A_SCOPE, 404, *_OF_A_BODY, 502, 504),
        ChatRequest,
    ),
    _Described(
        "/models",
        "get",
        "listModels",
        "List the models that this token may use",
        "Prices are whole credits per million tokens.",
        "llm-all",
        200,
        ModelList,
        _OF_A_SCOPE,
    ),
    _Described(
        "/models/{model_id}",
        "get",
        "showModel",
        "Show one model",
        "A slash in the id may be sent as itself or as `%2F`.",
        "llm-all",
        200,
        ModelObject,
        (*_OF_A_SCOPE, 404),
        parameters=(_path_parameter("model_id", "For example `tollway/smollm2-135m`."),),
    ),
    _Described(
        "/accounts/me",
        "get",
        "showAccount",
        "Show the token's account",
        "`creditBalance` has in it what is held for requests in flight (`creditsHeld`).",
        None,
        200,
        AccountObject,
    ),
    _Described(
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
    _Described(
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
    _Described(
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
        (*_OF_A_SCOPE, *_OF_A_BODY),
        TokenAsk,
    ),
    _Described(
        "/auth/pat",
        "get",
        "listTokens",
        "List the account's tokens",
        "Revoked and expired ones too; never a secret.",
        "account",
        200,
        TokenList,
        _OF_A_SCOPE,
    ),
    _Described(
        "/auth/pat/{token_id}",
        "delete",
        "revokeToken",
        "Revoke a token",
        "It is refused from the next request on. Revoking it again changes nothing.",
        "account",
        200,
        TokenObject,
        (*_OF_A_SCOPE, 404),
        parameters=(_path_parameter("token_id", "`tok_` and 32 hexadecimal digits."),),
    ),
)

_REFUSALS: Mapping[int, tuple[str, tuple[str, ...]]] = {
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

_HEADERS: Mapping[str, tuple[str, Json]] = {
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

_ALWAYS_SENT = frozenset({"X-Request-Id", "WWW-Authenticate"})
_RATE_HEADERS = (
    "X-RateLimit-Limit-Requests",
    "X-RateLimit-Remaining-Requests",
    "X-RateLimit-Reset-Requests",
)
_OF_A_SUCCESS = ("X-Request-Id", *_RATE_HEADERS)
_OF_A_REFUSAL = (*_OF_A_SUCCESS, "X-Credits-Consumed", "X-Credits-Remaining", "X-Should-Retry")
_OF_A_COMPLETION = (
    *_OF_A_SUCCESS,
    "X-Credits-Consumed",
    "X-Credits-Remaining",
    "X-Credits-Reserved",
    "X-Tollway-Ignored-Params",
)

# --- the document ---------------------------------------------------------------------------------


def document_bytes(version: str) -> bytes:
    return msgspec.json.encode(document(version))


def document(version: str) -> Json:
    paths: dict[str, Json] = {}
    for operation in _OPERATIONS:
        paths.setdefault(BASE + operation.path, {})[operation.method] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Tollway",
            "version": version,
            "description": "Metered, prepaid access to language models through one "
            "OpenAI-compatible API. `/v1` is an alias of `/api/v1`: the same routes. A method "
            "that a route is not listed with gets a 405, `method_not_allowed`, whose `Allow` has "
            "those that it takes.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}],
        "paths": paths | _pages(),
        "components": {
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A personal access token, `tw_...`.",
                }
            },
            "schemas": _schemas(),
            "responses": {str(status): _refusal(status) for status in _REFUSALS},
            "headers": {
                name: {
                    "description": description,
                    "required": name in _ALWAYS_SENT,
                    "schema": schema,
                }
                for name, (description, schema) in _HEADERS.items()
            },
        },
    }


def _operation(operation: _Described) -> Json:
    content = {"application/json": {"schema": _ref(operation.reply)}}
    headers = _OF_A_SUCCESS
    if operation is _CHAT:
        headers = _OF_A_COMPLETION
        content["text/event-stream"] = {"schema": {"type": "string", "description": _STREAM}}
    needs = "any scope" if operation.scope is None else f"the scope `{operation.scope}`"
    described: Json = {
        "operationId": operation.id,
        "summary": operation.summary,
        "description": f"{operation.description}\n\nNeeds a token with {needs}.",
        "responses": {
            str(operation.success): {
                "description": "Done.",
                "headers": _header_refs(headers),
                "content": content,
            },
            **_refusal_refs((*_OF_EVERY, *operation.refusals)),
        },
    }
    if operation.parameters:
        described["parameters"] = list(operation.parameters)
    if operation.body is not None:
        json_body = {"application/json": {"schema": _ref(operation.body)}}
        described["requestBody"] = {"required": True, "content": json_body}
    return described


_STREAM = (
    "With `stream: true`. Server-sent events: each `data:` is a ChatCompletionChunk, the last one "
    "is `[DONE]`. With `stream_options.include_usage` the chunk before it has no choices and the "
    "usage with its credits; else a comment `: credits consumed=N remaining=M` has them. A failure "
    'after the first byte is one event `{"error": {...}}`, and then the stream ends without '
    "`[DONE]`."
)


def _pages() -> dict[str, Json]:
    health = {"application/json": {"schema": _ref(Health)}}
    media_type = CONTENT_TYPE.partition(";")[0]
    return {
        f"{BASE}/receipts/public-key": {
            "get": _page(
                "receiptKey",
                "The public key that signed receipts are checked with",
                {200: {"application/json": {"schema": _ref(ReceiptKey)}}},
            )
        },
        "/healthz": {"get": _page("health", "Does the server run?", {200: health})},
        "/readyz": {
            "get": _page("readiness", "Can it serve requests now?", {200: health, 503: health})
        },
        "/metrics": {
            "get": _page(
                "metrics",
                "What it counts, for Prometheus",
                {200: {media_type: {"schema": {"type": "string"}}}},
            )
        },
        "/openapi.json": {
            "get": _page(
                "openapi",
                "This document",
                {200: {"application/json": {"schema": {"type": "object"}}}},
            )
        },
    }


def _page(id_: str, summary: str, replies: Mapping[int, Json]) -> Json:
    responses: Json = {
        str(status): {
            "description": "Yes." if status == 200 else "No: `reasons` says why.",
            "headers": _header_refs(["X-Request-Id"]),
            "content": content,
        }
        for status, content in replies.items()
    }
    return {
        "operationId": id_,
        "summary": summary,
        "security": [],
        "responses": responses | _refusal_refs(_OF_A_PAGE),
    }


def _refusal(status: int) -> Json:
    description, more_headers = _REFUSALS[status]
    return {
        "description": description,
        "headers": _header_refs(dict.fromkeys((*_OF_A_REFUSAL, *more_headers))),
        "content": {"application/json": {"schema": _ref(ErrorBody)}},
    }


def _refusal_refs(statuses: Iterable[int]) -> Json:
    return {str(s): {"$ref": f"#/components/responses/{s}"} for s in sorted(set(statuses))}


def _header_refs(names: Iterable[str]) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


# --- schemas --------------------------------------------------------------------------------------

# Their fields have defaults for what an upstream may leave out; a reply of ours has all but those
# that are unset.
_WRITTEN_WHOLE: tuple[type[Struct], ...] = (
    ChatCompletion,
    Choice,
    ReplyMessage,
    ReplyToolCall,
    Logprobs,
    TokenLogprob,
    TopLogprob,
)


def _ref(struct: type[Struct]) -> Json:
    return {"$ref": f"#/components/schemas/{struct.__name__}"}


def _schemas() -> Json:
    structs = {operation.reply for operation in _OPERATIONS} | {
        operation.body for operation in _OPERATIONS if operation.body is not None
    }
    structs |= {Chunk, Health, ReceiptKey, ErrorBody, CreditsWhy, RateWhy, CompletionUsage}
    in_order = sorted(structs, key=lambda struct: struct.__name__)
    _, schemas = msgspec.json.schema_components(
        in_order, ref_template="#/components/schemas/{name}"
    )
    for struct in _WRITTEN_WHOLE:
        schemas[struct.__name__]["required"] = [
            field.encode_name
            for field in msgspec.structs.fields(struct)
            if field.default is not UNSET
        ]
    why = schemas["ErrorFact"]["properties"]["why"]
    why["anyOf"] = [_ref(CreditsWhy), _ref(RateWhy)]
    del why["type"]
    completion = schemas["ChatCompletion"]
    completion["description"] = "A whole reply."
    completion["properties"]["usage"] = _ref(CompletionUsage)
    _describe_chunks(schemas)
    for schema in schemas.values():
        if "description" in schema:  # a docstring, broken into lines
            schema["description"] = " ".join(schema["description"].split())
    return schemas


def _describe_chunks(schemas: Json) -> None:
    """`Chunk` is what an upstream may send; what we send has more that is certain."""
    chunk = schemas["ChatCompletionChunk"] = schemas.pop("Chunk")
    del chunk["properties"]["error"]
    chunk["title"] = "ChatCompletionChunk"
    chunk["description"] = "One event of a stream."
    chunk["properties"]["object"] = {"const": "chat.completion.chunk"}
    chunk["properties"]["usage"] = {"anyOf": [_ref(CompletionUsage), {"type": "null"}]}
    chunk["required"] = ["id", "object", "created", "model", "choices"]
    for reply in ("Delta", "ReplyMessage"):
        del schemas[reply]["properties"]["reasoning"]  # `reasoning_content` is what we say
    for struct in (Delta, ChunkChoice):
        schemas[struct.__name__]["title"] = struct.__name__

"""`/openapi.json`: the API described in OpenAPI 3.1, from the types that validate and that reply.

`described.py` has what no type can say. `tests/unit/api/test_openapi.py` holds the paths to the
routes and the replies to the schemas.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from tollway.api.described import (
    ALWAYS_SENT,
    CHAT,
    COMMON_REFUSALS,
    COMPLETION_HEADERS,
    HEADERS,
    OPERATIONS,
    PAGE_REFUSALS,
    REFUSAL_HEADERS,
    REFUSALS,
    STREAM,
    SUCCESS_HEADERS,
    DescribedOperation,
    Json,
)
from tollway.api.health import Health
from tollway.api.receipts import ReceiptKey
from tollway.errors import CreditsWhy, RateWhy
from tollway.metrics.exposition import CONTENT_TYPE
from tollway.wire.chat import (
    ChatCompletion,
    Choice,
    Logprobs,
    ReplyMessage,
    ReplyToolCall,
    TokenLogprob,
    TopLogprob,
)
from tollway.wire.events import Chunk, ChunkChoice, Delta

BASE = "/api/v1"


def document_bytes(version: str) -> bytes:
    return msgspec.json.encode(document(version))


def document(version: str) -> Json:
    paths: dict[str, Json] = {}
    for operation in OPERATIONS:
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
            "responses": {str(status): _refusal(status) for status in REFUSALS},
            "headers": {
                name: {
                    "description": description,
                    "required": name in ALWAYS_SENT,
                    "schema": schema,
                }
                for name, (description, schema) in HEADERS.items()
            },
        },
    }


def _operation(operation: DescribedOperation) -> Json:
    content = {"application/json": {"schema": _ref(operation.reply)}}
    headers = SUCCESS_HEADERS
    if operation is CHAT:
        headers = COMPLETION_HEADERS
        content["text/event-stream"] = {"schema": {"type": "string", "description": STREAM}}
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
            **_refusal_refs((*COMMON_REFUSALS, *operation.refusals)),
        },
    }
    if operation.parameters:
        described["parameters"] = list(operation.parameters)
    if operation.body is not None:
        json_body = {"application/json": {"schema": _ref(operation.body)}}
        described["requestBody"] = {"required": True, "content": json_body}
    return described


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
        "responses": responses | _refusal_refs(PAGE_REFUSALS),
    }


def _refusal(status: int) -> Json:
    description, more_headers = REFUSALS[status]
    return {
        "description": description,
        "headers": _header_refs(dict.fromkeys((*REFUSAL_HEADERS, *more_headers))),
        "content": {"application/json": {"schema": _ref(ErrorBody)}},
    }


def _refusal_refs(statuses: Iterable[int]) -> Json:
    return {str(s): {"$ref": f"#/components/responses/{s}"} for s in sorted(set(statuses))}


def _header_refs(names: Iterable[str]) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


# --- schemas --------------------------------------------------------------------------------------


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
    structs = {operation.reply for operation in OPERATIONS} | {
        operation.body for operation in OPERATIONS if operation.body is not None
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

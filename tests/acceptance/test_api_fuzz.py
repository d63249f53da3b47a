"""The API against its own description: schemathesis makes requests from /openapi.json, and every
answer must be one that the description has, in its schema, in time, and no fault of the server's.

The fake upstream answers what reaches it. The examples are the same on every run.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# (schemathesis leaves its generic types open.)

import json
from collections.abc import Callable
from typing import Any

import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from schemathesis.specs.openapi.schemas import OpenApiSchema
from tests.support.customer import Customer, a_customer
from tests.support.server import TollwayServer

from tollway import __version__
from tollway.api.openapi import document

SECONDS_MAX = 10
CHECKS: list[Any] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
FUZZ = hypothesis_settings(
    max_examples=40,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
CHAT = "/api/v1/chat/completions"
OPERATIONS = [
    (path, method) for path, item in document(__version__)["paths"].items() for method in item
]
CHUNK = jsonschema_rs.validator_for(
    {
        "$ref": "#/components/schemas/ChatCompletionChunk",
        "components": document(__version__)["components"],
    }
)
# What takes nothing cannot be asked wrongly.
TAKING = [
    (path, method)
    for path, item in document(__version__)["paths"].items()
    for method, operation in item.items()
    if "parameters" in operation or "requestBody" in operation
]
MODES = [
    *((*operation, GenerationMode.POSITIVE) for operation in OPERATIONS),
    *((*operation, GenerationMode.NEGATIVE) for operation in TAKING),
]


@pytest.fixture(scope="module")
def settings() -> str:
    return """[limits]
requests_per_minute = 1000000
other_requests_per_minute = 1000000
failed_authentications_per_minute = 1000000
"""


@pytest.fixture(scope="module")
def api(server: TollwayServer) -> OpenApiSchema:
    return schemathesis.openapi.from_url(f"{server.origin}/openapi.json", timeout=SECONDS_MAX)


@pytest.fixture(scope="module")
def rich(server: TollwayServer) -> Customer:
    return a_customer(server, credits=10**12)


def ask(case: Case[Any], headers: dict[str, str]) -> int:
    response = case.call(headers=headers, timeout=SECONDS_MAX)
    case.validate_response(response, checks=CHECKS)
    return response.status_code


def ask_for_events(case: Case[Any], headers: dict[str, str]) -> int:
    """In OpenAPI 3.1 a schema is of a whole body, here a string; schemathesis takes it for that of
    an event. So the events are held to the schema that the document has for them."""
    response = case.call(headers=headers, timeout=SECONDS_MAX)
    streamed = response.headers["content-type"][0].startswith("text/event-stream")
    excluded = [response_schema_conformance] if streamed else []
    case.validate_response(response, checks=[one for one in CHECKS if one not in excluded])
    for event in response.content.decode().split("\n\n") if streamed else []:
        data = event.removeprefix("data: ")
        if event.startswith("data: ") and data != "[DONE]":
            CHUNK.validate(json.loads(data))
    return response.status_code


def test_the_description_that_is_served_is_the_one_that_is_fuzzed(api: OpenApiSchema) -> None:
    assert api.raw_schema == document(__version__)


@pytest.mark.parametrize(
    ("path", "method", "mode"), MODES, ids=[f"{m.value} {v} {p}" for p, v, m in MODES]
)
def test_every_answer_is_as_described(
    api: OpenApiSchema, rich: Customer, path: str, method: str, mode: GenerationMode
) -> None:
    authorised = dict(rich.authorization)

    @FUZZ
    @given(case=api[path][method].as_strategy(generation_mode=mode))
    def fuzz(case: Case[Any]) -> None:
        ask(case, authorised)

    fuzz()


@pytest.mark.parametrize(("path", "method"), OPERATIONS, ids=[" ".join(o) for o in OPERATIONS])
def test_without_a_token_nothing_of_an_account_is_shown(
    api: OpenApiSchema, path: str, method: str
) -> None:
    statuses: set[int] = set()

    @FUZZ
    @given(case=api[path][method].as_strategy())
    def fuzz(case: Case[Any]) -> None:
        statuses.add(ask(case, {"Authorization": "Bearer tw_wrong"}))

    fuzz()
    # The key that receipts are checked with is anybody's to have.
    is_open = not path.startswith("/api/") or path.endswith("/receipts/public-key")
    assert statuses == ({200} if is_open else {401})


@pytest.mark.parametrize(
    ("streamed", "asking"), [(False, ask), (True, ask_for_events)], ids=["plain", "stream"]
)
def test_what_reaches_the_upstream_comes_back_as_described(
    api: OpenApiSchema,
    rich: Customer,
    streamed: bool,
    asking: Callable[[Case[Any], dict[str, str]], int],
) -> None:
    """A name made up is hardly ever a model's: with one, requests get as far as the upstream."""
    authorised = dict(rich.authorization)
    statuses: list[int] = []

    @hypothesis_settings(FUZZ, max_examples=150)
    @given(case=api[CHAT]["post"].as_strategy())
    def fuzz(case: Case[Any]) -> None:
        assert isinstance(case.body, dict)
        case.body |= {"model": rich.model, "stream": streamed, "user": None}
        case.headers.clear()  # X-Credits-Max would refuse nearly all of them
        statuses.append(asking(case, authorised))

    fuzz()
    assert statuses.count(200) > 10

"""The document says what the routes do."""

import re
from typing import Any

import msgspec
import pytest
from starlette.routing import Route, Router
from tests.support.api import MODEL, Api, ApiReply
from tests.support.builders import chat_body

from tollway.api.accounts import AccountObject, TransactionList
from tollway.api.models import ModelList
from tollway.api.openapi import ErrorBody, document
from tollway.api.quote import Quote
from tollway.api.receipts import ReceiptKey, ReceiptObject
from tollway.api.tokens import IssuedToken
from tollway.wire.chat import ChatRequest

DOCUMENT = document("1.2.3")
BASE = "/api/v1"


async def test_the_document_is_served_without_a_token(api: Api) -> None:
    reply = await api.get("/openapi.json")
    assert reply.status == 200
    assert reply.json() == DOCUMENT
    assert DOCUMENT["openapi"].startswith("3.1")


async def test_each_route_is_described_and_nothing_else(api: Api) -> None:
    assert isinstance(api.app, Router)
    routes = {
        re.sub(":path", "", route.path)
        for route in api.app.routes
        if isinstance(route, Route) and not route.path.startswith("/v1/")
    }
    assert set(DOCUMENT["paths"]) == routes


@pytest.mark.parametrize(
    ("path", "method"),
    [(p, m) for p, item in DOCUMENT["paths"].items() for m in item if "chat/completions" not in p],
)
async def test_each_method_that_is_described_is_taken(api: Api, path: str, method: str) -> None:
    reply = await api.ask(method.upper(), path.replace("{", "").replace("}", ""), api.secret)
    assert reply.status != 405
    assert str(reply.status) in DOCUMENT["paths"][path][method]["responses"]


def test_every_reference_leads_somewhere() -> None:
    text = msgspec.json.encode(DOCUMENT).decode()
    for reference in set(re.findall(r'"(#/components/[^"]+)"', text)):
        place: Any = DOCUMENT
        for step in reference.removeprefix("#/").split("/"):
            assert step in place, reference
            place = place[step]


def test_every_component_is_referred_to() -> None:
    text = msgspec.json.encode(DOCUMENT).decode()
    components = {
        f"#/components/{kind}/{name}"
        for kind, named in DOCUMENT["components"].items()
        for name in named
        if kind != "securitySchemes"  # those are named by `security`
    }
    # An event's: OpenAPI 3.1 has no word for what a stream is made of.
    alone = {"#/components/schemas/ChatCompletionChunk"}
    assert components - set(re.findall(r'"(#/components/[^"]+)"', text)) == alone


def test_every_field_of_a_chat_request_is_described() -> None:
    described = DOCUMENT["components"]["schemas"]["ChatRequest"]
    assert tuple(described["properties"]) == ChatRequest.__struct_fields__
    assert set(described["required"]) == {"model", "messages"}


def test_streams_are_described_as_event_streams() -> None:
    operation = DOCUMENT["paths"][f"{BASE}/chat/completions"]["post"]
    assert set(operation["responses"]["200"]["content"]) == {
        "application/json",
        "text/event-stream",
    }
    assert "X-Credits-Reserved" in operation["responses"]["200"]["headers"]


async def test_what_is_answered_has_the_described_shape(api: Api) -> None:
    request_id, _ = await api.charged_request()
    token = {"name": "a", "scopes": ["llm-all"]}
    replies: list[tuple[ApiReply, type[msgspec.Struct]]] = [
        (await api.get("/v1/models", api.secret), ModelList),
        (await api.get("/v1/accounts/me", api.secret), AccountObject),
        (await api.get("/v1/credit-transactions", api.secret), TransactionList),
        (await api.get(f"/v1/receipts/{request_id}", api.secret), ReceiptObject),
        (await api.get(f"/v1/receipts/{request_id}?signed=true", api.secret), ReceiptObject),
        (await api.get("/v1/receipts/public-key"), ReceiptKey),
        (await api.post("/v1/auth/pat", api.secret, token), IssuedToken),
        (
            await api.post("/v1/chat/completions/quote", api.secret, chat_body(model=MODEL)),
            Quote,
        ),
        (await api.get("/v1/nothing"), ErrorBody),
        (await api.get("/v1/models"), ErrorBody),
    ]
    for reply, shape in replies:
        read = msgspec.json.decode(reply.body, type=shape)
        assert msgspec.json.decode(msgspec.json.encode(read)) == reply.json()


async def test_the_headers_of_a_reply_are_described(api: Api) -> None:
    described = {name.lower() for name in DOCUMENT["components"]["headers"]}
    plain = {"content-type", "content-length", "cache-control", "allow"}
    for reply in (
        await api.get("/v1/models", api.secret),
        await api.get("/v1/models"),
        await api.post("/v1/auth/pat", api.secret, {}),
    ):
        assert {name for name, _ in reply.headers} <= described | plain

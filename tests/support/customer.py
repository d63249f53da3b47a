"""One account and a token of it, and what they can ask of a running server.

Each test makes its own: limits and balances are an account's, so that many tests share a server.
"""

import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tests.support.builders import message
from tests.support.http import Header, RawClient, Reply
from tests.support.server import TollwayServer

MODEL = "acme/parrot"
TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Customer:
    server: TollwayServer
    account_id: str
    token_id: str
    token: str
    model: str = MODEL
    base: str = "/api/v1"

    # --- asking ---

    def chat(self, *headers: Header, **fields: object) -> Reply:
        """A chat completion, streamed or not; `fields` as `chat_fields` takes them."""
        return self.ask("POST", "/chat/completions", self.chat_fields(**fields), *headers)

    def get(self, path: str, *headers: Header) -> Reply:
        return self.ask("GET", path, None, *headers)

    def post(self, path: str, body: object, *headers: Header) -> Reply:
        return self.ask("POST", path, body, *headers)

    def ask(self, method: str, path: str, body: object = None, *headers: Header) -> Reply:
        """`body` is sent as JSON, or as it is where it is bytes."""
        with self.client() as client:
            client.request(method, self.base + path, _encoded(body), *self.authorization, *headers)
            return client.read_reply(bodyless=method == "HEAD")

    def begin_chat(self, *headers: Header, **fields: object) -> RawClient:
        """The request is sent, nothing is read; the caller closes the client."""
        client = self.client()
        body = _encoded(self.chat_fields(**fields))
        client.request("POST", f"{self.base}/chat/completions", body, *self.authorization, *headers)
        return client

    def client(self) -> RawClient:
        return RawClient("127.0.0.1", self.server.port, timeout_seconds=TIMEOUT_SECONDS)

    def chat_fields(self, **overrides: object) -> dict[str, Any]:
        """A valid request. An override of `...` takes the field out."""
        fields: dict[str, Any] = {"model": self.model, "messages": [message()], **overrides}
        return {name: value for name, value in fields.items() if value is not ...}

    @property
    def authorization(self) -> tuple[Header, ...]:
        return (("Authorization", f"Bearer {self.token}"),)

    # --- what is known of it ---

    def receipt(self, request_id: str) -> dict[str, Any]:
        return self.get(f"/receipts/{request_id}").json()

    def receipt_of(self, reply: Reply) -> dict[str, Any]:
        request_id = reply.header("x-request-id")
        assert request_id is not None
        return self.receipt(request_id)

    @property
    def balance(self) -> int:
        return self.get("/accounts/me").json()["creditBalance"]

    @property
    def available(self) -> int:
        me = self.get("/accounts/me").json()
        return me["creditBalance"] - me["creditsHeld"]

    # --- others ---

    def with_token(self, **fields: object) -> "Customer":
        """The same account with another token."""
        return replace(self, **_issued(self.server, self.account_id, **fields))

    def over(self, base: str) -> "Customer":
        return replace(self, base=base)

    def of(self, model: str) -> "Customer":
        return replace(self, model=model)


def a_customer(
    server: TollwayServer,
    *,
    credits: int | None = None,
    model: str = MODEL,
    limits: dict[str, int] | None = None,
    **token: object,
) -> Customer:
    """A new account. `limits` and `token` are what the commands `account set` and `token issue`
    take."""
    name = f"test-{uuid.uuid4().hex}"
    given = {} if credits is None else {"credits": credits}
    account_id: str = server.operate("account create", name=name, **given)["id"]
    if limits:
        server.operate("account set", name=name, **limits)
    return Customer(server, account_id, model=model, **_issued(server, name, **token))


def eventually(true: Callable[[], bool], seconds: float) -> None:
    """Returns as soon as it holds. For what a server does after a client has gone."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not so within {seconds} s"
        time.sleep(0.01)


def _issued(server: TollwayServer, account: str, **fields: object) -> dict[str, str]:
    asked: dict[str, object] = {"scopes": ["llm-all", "account"], "name": "test", **fields}
    issued = server.operate("token issue", account=account, **asked)
    return {"token_id": issued["id"], "token": issued["personal_access_token"]}


def _encoded(body: object) -> bytes | None:
    if body is None or isinstance(body, bytes):
        return body
    return json.dumps(body).encode()

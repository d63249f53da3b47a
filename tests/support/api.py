"""The API's routes over a real database, called as ASGI without a socket.

async with an_api(tmp_path) as api:
    reply = await api.get("/api/v1/models", api.secret)
    assert reply.status == 200
"""

import contextlib
import json
import sqlite3
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from starlette.types import ASGIApp, Message, Scope
from tests.support.clock import FixedClock
from tests.support.sqlite import migrated

from tollway.accounts import Account, Accounts
from tollway.api.access_log import AccessLog
from tollway.api.address import Network
from tollway.api.observer import RequestObserver
from tollway.api.operation import ApiParts
from tollway.api.routes import create_app
from tollway.catalogue import Catalogue, Model, ModelOffer, Serving
from tollway.clock import new_id
from tollway.database.sqlite import SqliteDatabase
from tollway.gateway.admit import Gate, Limits
from tollway.gateway.authenticate import Authenticator
from tollway.ledger.base import Attempt, Hold, HoldAsk, Outcome, Settlement, genesis
from tollway.ledger.signing import SigningKey
from tollway.ledger.sqlite import SqliteLedger
from tollway.metrics.counters import Metrics
from tollway.metrics.exposition import Exposition
from tollway.rates.concurrency import Concurrency
from tollway.rates.memory import MemoryRateLimiter
from tollway.tokens import Token, Tokens
from tollway.wire.requests import ParsedRequest

CREDITS = 100_000
MODEL = "acme/parrot"
PLAIN_MODEL = "acme/plain"
CONTEXT_LENGTH = 1_000


@dataclass(frozen=True, slots=True)
class ApiReply:
    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        values = [value for key, value in self.headers if key == name.lower()]
        assert len(values) < 2, f"{name} was sent {len(values)} times"
        return values[0] if values else None

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return self.json()["error"]["code"]

    @property
    def param(self) -> str | None:
        return self.json()["error"]["param"]


@dataclass(slots=True)
class Api:
    """`exact_tokens`: what the model's tokenizer counts, None where it cannot be asked."""

    app: ASGIApp
    clock: FixedClock
    accounts: Accounts
    tokens: Tokens
    ledger: SqliteLedger
    catalogue: Catalogue
    metrics: Metrics
    access_log: AccessLog
    access_path: Path
    database_path: Path
    account: Account
    secret: str
    exact_tokens: int | None = None
    not_ready: list[str] = field(default_factory=list[str])

    async def get(self, path: str, secret: str | None = None) -> ApiReply:
        return await self.ask("GET", path, secret)

    async def post(self, path: str, secret: str | None, body: object) -> ApiReply:
        return await self.ask("POST", path, secret, json.dumps(body).encode())

    async def ask(
        self,
        method: str,
        path: str,
        secret: str | None = None,
        body: bytes = b"",
        *,
        peer: str = "192.0.2.1",
        **headers: str,
    ) -> ApiReply:
        """`path` as on the wire, with its query. A header's name is written with underscores."""
        sent = [(n.replace("_", "-").encode(), v.encode()) for n, v in headers.items()]
        if secret is not None:
            sent.append((b"authorization", f"Bearer {secret}".encode()))
        if body:
            sent.append((b"content-length", str(len(body)).encode()))
        return await ask(self.app, method, path, sent, [body], peer)

    async def issue(self, account: Account | None = None, **fields: Any) -> tuple[Token, str]:
        fields = {"name": "test", "scopes": ["llm-all", "account"], **fields}
        return await self.tokens.issue((account or self.account).id, **fields)

    async def another_account(self, name: str = "other") -> tuple[Account, str]:
        account = await self.accounts.create(name, chain_head=genesis)
        _, secret = await self.issue(account)
        return account, secret

    def model(self, model_id: str = MODEL) -> Model:
        return self.catalogue.find(model_id, None)

    async def hold(self, amount: int = 100) -> Hold:
        now = self.clock.now()
        price = self.model().price.id
        token = self.tokens.authenticate(self.secret)
        ask = HoldAsk(
            new_id("req", now), self.account.id, token.id, price, amount, amount, None, now
        )
        return await self.ledger.hold(ask)

    async def charged_request(self, cost: int = 30, **outcome: Any) -> tuple[str, Settlement]:
        hold = await self.hold()
        fields: dict[str, Any] = {
            "status": "completed",
            "model": MODEL,
            "input_tokens": 10,
            "output_tokens": 10,
            "source": "upstream",
            "cost": cost,
            "attempts": (Attempt("gpu-1", 200),),
            "upstream": "gpu-1",
            "upstream_id": "chatcmpl-theirs",
            "client_request_id": "mine-1",
            "first_token_seconds": 0.18,
            "total_seconds": 0.94,
            **outcome,
        }
        return hold.request_id, await self.ledger.settle(hold, Outcome(**fields))

    def hash_of_entry(self, seq: int) -> str:
        with contextlib.closing(sqlite3.connect(self.database_path)) as connection:
            (hash_,) = connection.execute(
                "SELECT hash FROM ledger WHERE account_id = ? AND seq = ?", (self.account.id, seq)
            ).fetchone()
        return hash_.hex()

    def break_database(self) -> None:
        """From here on its disk gives back nothing but zeros."""
        for path in (self.database_path, self.database_path.with_name("tollway.db-wal")):
            path.write_bytes(bytes(path.stat().st_size))


@asynccontextmanager
async def an_api(
    folder: Path,
    *,
    other_requests_per_minute: int = 100,
    failures_per_minute: int = 10,
    trusted_proxies: Sequence[Network] = (),
) -> AsyncGenerator[Api]:
    clock = FixedClock()
    database = SqliteDatabase(migrated(folder / "tollway.db"))
    database.open()
    metrics = Metrics()
    access_log = AccessLog("access.log", folder, metrics)
    await access_log.start()
    try:
        accounts, tokens = Accounts(database, clock), Tokens(database, clock)
        ledger = SqliteLedger(database, clock, _no_refusal)
        catalogue = await Catalogue.load(_OFFERS, database, clock)
        account = await accounts.create("default", chain_head=genesis)
        await ledger.add(
            account.id, CREDITS, kind="grant", ref=account.id, description="Starting credits"
        )
        limiter = MemoryRateLimiter(clock)
        limits = Limits(30, other_requests_per_minute, 64)

        async def count(_model: Model, _parsed: ParsedRequest, _most: int) -> int | None:
            return api.exact_tokens

        observer = RequestObserver(metrics, access_log, clock)
        not_ready: list[str] = []
        parts = ApiParts(
            authenticator=Authenticator(tokens, accounts, limiter, failures_per_minute, clock),
            tokens=tokens,
            accounts=accounts,
            ledger=ledger,
            catalogue=catalogue,
            limiter=limiter,
            gate=Gate(catalogue, count, limiter, Concurrency(), ledger, limits),
            clock=clock,
            observer=observer,
            exposition=Exposition(
                metrics,
                version="1.2.3",
                now=clock.now,
                monotonic=clock.monotonic,
                in_flight=lambda: 0,
                tasks=lambda: 0,
                open_holds=ledger.open_holds,
                leased=ledger.leased,
                upstreams=list,
                tries_refused=list,
                database_fault=lambda: database.fault,
            ),
            signing_key=SigningKey.load(folder),
            not_ready=lambda: not_ready,
            trusted_proxies=trusted_proxies,
            version="1.2.3",
        )
        _, secret = await tokens.issue(account.id, name="first", scopes=["llm-all", "account"])
        api = Api(
            create_app(parts),
            clock,
            accounts,
            tokens,
            ledger,
            catalogue,
            metrics,
            access_log,
            folder / "access.log",
            database.path,
            account,
            secret,
            not_ready=not_ready,
        )
        yield api
    finally:
        await access_log.stop()
        await database.close()


def _no_refusal(account_id: str, token_id: str) -> None:
    del account_id, token_id


async def ask(
    app: ASGIApp,
    method: str,
    path: str,
    headers: list[tuple[bytes, bytes]],
    pieces: Sequence[bytes] = (b"",),
    peer: str = "192.0.2.1",
) -> ApiReply:
    """One request, whose body comes in `pieces`; an empty sequence is a client that leaves."""
    raw_path, _, query = path.partition("?")
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(raw_path),
        "raw_path": raw_path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": headers,
        "client": (peer, 50000),
        "server": ("127.0.0.1", 8080),
    }
    coming = list(pieces)
    sent: list[Message] = []

    async def receive() -> Message:
        if not coming:
            return {"type": "http.disconnect"}
        body = coming.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(coming)}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    if not sent:
        return ApiReply(0, [], b"")
    start, *rest = sent
    return ApiReply(
        start["status"],
        [(name.decode(), value.decode()) for name, value in start["headers"]],
        b"".join(message.get("body", b"") for message in rest),
    )


def _offer(model_id: str, supported: frozenset[str] | None) -> ModelOffer:
    return ModelOffer(
        id=model_id,
        tier="budget",
        input_credits_per_million=1_000_000,
        output_credits_per_million=2_000_000,
        context_length=CONTEXT_LENGTH,
        max_output_tokens=400,
        default_max_tokens=200,
        supported_parameters=supported,
        confidential=False,
        servings=(Serving("gpu-1", "parrot"),),
    )


_OFFERS = (_offer(MODEL, None), _offer(PLAIN_MODEL, frozenset({"temperature"})))

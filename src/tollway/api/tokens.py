"""What an account may see and change of its own tokens: `/auth/pat`.

A token that issues another never gives more than it has itself: no scope, model or lifetime beyond
its own. Limits that count (a spend cap, requests a minute) would count anew for each token issued,
so a token that has one issues none.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from tollway.api.operation import Answer, Asked
from tollway.clock import iso
from tollway.errors import InvalidRequest, PermissionDenied
from tollway.gateway.authenticate import require_active_account
from tollway.gateway.types import Caller
from tollway.tokens import NAME_CHARACTERS_MAX, Token
from tollway.wire.requests import explain_invalid
from tollway.wire.strict_json import parse_object

EXPIRES_IN_SECONDS_MAX = 10 * 365 * 86_400


class TokenAsk(Struct, forbid_unknown_fields=True):
    """`expires_in` is in seconds; without it the token lives as long as the one that issues it."""

    name: Annotated[str, Meta(min_length=1, max_length=NAME_CHARACTERS_MAX)]
    scopes: Annotated[list[Literal["llm-all", "account"]], Meta(min_length=1)]
    expires_in: Annotated[int, Meta(ge=1, le=EXPIRES_IN_SECONDS_MAX)] | None = None


class IssuedToken(Struct, frozen=True):
    """The secret is in this reply and nowhere else: it cannot be shown again."""

    id: str
    name: str
    personal_access_token: str
    scopes: list[str]
    expires_in: int | None


class TokenObject(Struct, frozen=True, rename="camel"):
    """Never the secret: it is not kept. `models` null: all of them; `expiresAt` null: never."""

    id: str
    name: str
    account_id: str
    scopes: list[str]
    models: list[str] | None
    requests_per_minute: int | None
    spend_cap: int | None
    strict: bool
    created_at: str
    expires_at: str | None
    revoked_at: str | None


class TokenList(Struct, frozen=True):
    data: list[TokenObject]


async def issue_token(asked: Asked) -> Answer:
    caller, parts = asked.caller, asked.parts
    require_active_account(caller)
    ask = parse_token_ask(await asked.body())
    _require_own_scopes(caller, ask)
    _require_no_counting_limit(caller)
    expires_in = _lifetime(caller, ask, parts.clock.now())
    await asked.take_place()
    token, secret = await parts.tokens.issue(
        caller.account.id,
        name=ask.name,
        scopes=ask.scopes,
        models=caller.token.models,
        expires_in_seconds=expires_in,
        strict=caller.token.strict,
    )
    issued = IssuedToken(token.id, token.name, secret, sorted(token.scopes), expires_in)
    return Answer(issued, status=201, headers=((b"cache-control", b"no-store"),))


async def list_tokens(asked: Asked) -> Answer:
    await asked.take_place()
    tokens = asked.parts.tokens.list(asked.caller.account.id)
    return Answer(TokenList([token_object(token) for token in tokens]))


async def revoke_token(asked: Asked) -> Answer:
    await asked.take_place()
    token = await asked.parts.tokens.revoke(
        asked.path["token_id"], account_id=asked.caller.account.id
    )
    return Answer(token_object(token))


def parse_token_ask(body: bytes) -> TokenAsk:
    """Unlike in a chat request an unknown field is refused: who sends `models` here must not
    believe that the token is limited to them."""
    document = {name: value for name, value in parse_object(body).items() if value is not None}
    for name in document:
        if name not in TokenAsk.__struct_fields__:
            raise InvalidRequest(
                f"{name!r:.100} is not a field of this request. It takes "
                f"{', '.join(TokenAsk.__struct_fields__)}.",
                code="unsupported_parameter",
                param=name[:100],
            )
    try:
        return msgspec.convert(document, TokenAsk)
    except msgspec.ValidationError as error:
        raise explain_invalid(error, document, TokenAsk) from None


def token_object(token: Token) -> TokenObject:
    return TokenObject(
        id=token.id,
        name=token.name,
        account_id=token.account_id,
        scopes=sorted(token.scopes),
        models=None if token.models is None else sorted(token.models),
        requests_per_minute=token.requests_per_minute,
        spend_cap=token.spend_cap,
        strict=token.strict,
        created_at=iso(token.created_at),
        expires_at=None if token.expires_at is None else iso(token.expires_at),
        revoked_at=None if token.revoked_at is None else iso(token.revoked_at),
    )


def _require_own_scopes(caller: Caller, ask: TokenAsk) -> None:
    lacking = sorted(set(ask.scopes) - caller.token.scopes)
    if lacking:
        raise PermissionDenied(
            f"This token lacks the scope {', '.join(lacking)}, so it cannot grant it. "
            f"It has {', '.join(sorted(caller.token.scopes))}.",
            code="insufficient_scope",
            param="scopes",
        )


def _require_no_counting_limit(caller: Caller) -> None:
    token = caller.token
    if token.spend_cap is None and token.requests_per_minute is None:
        return
    limit = "a spend cap" if token.spend_cap is not None else "a limit of requests a minute"
    raise PermissionDenied(
        f"This token has {limit}, which the tokens that it issued would not share: it cannot "
        "issue any. Use one without.",
        code="insufficient_scope",
    )


def _lifetime(caller: Caller, ask: TokenAsk, now: float) -> int | None:
    if caller.token.expires_at is None:
        return ask.expires_in
    left = max(0, int(caller.token.expires_at - now))
    if ask.expires_in is not None and ask.expires_in > left:
        raise InvalidRequest(
            f"expires_in is {ask.expires_in} and this token itself has {left} s left. Ask for at "
            "most that, or leave expires_in out.",
            param="expires_in",
        )
    return left if ask.expires_in is None else ask.expires_in

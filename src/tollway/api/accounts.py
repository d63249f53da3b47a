"""What an account may see and change of its own: its credit and its tokens.

A token that issues another never gives more than it has itself: no scope, model or lifetime beyond
its own. Limits that count (a spend cap, requests a minute) would count anew for each token issued,
so a token that has one issues none.
"""

import re
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from tollway.api.operation import Answer, Asked
from tollway.clock import iso
from tollway.errors import InvalidRequest, PermissionDenied
from tollway.gateway.authenticate import require_active_account
from tollway.gateway.types import Caller
from tollway.ledger.base import Entry, EntryKind
from tollway.tokens import NAME_CHARACTERS_MAX, Token
from tollway.wire.requests import explain_invalid
from tollway.wire.strict_json import parse_object

PAGE_MAX = 1_000_000_000
LIMIT_MAX = 100
LIMIT_DEFAULT = 20
EXPIRES_IN_SECONDS_MAX = 10 * 365 * 86_400

# --- the account ----------------------------------------------------------------------------------


class AccountLimits(Struct, frozen=True, rename="camel"):
    """The account's, and then the token's own, null where it has none."""

    requests_per_minute: int
    other_requests_per_minute: int
    concurrent_requests: int
    token_requests_per_minute: int | None
    token_spend_cap: int | None
    token_spend_cap_left: int | None


class AccountObject(Struct, frozen=True, rename="camel"):
    """The balance has what is held in it: what can be spent is the difference."""

    id: str
    name: str
    credit_balance: int
    credits_held: int
    created_at: str
    limits: AccountLimits


async def show_account(asked: Asked) -> Answer:
    await asked.take_place()
    account, token = asked.caller.account, asked.caller.token
    installation, cap = asked.parts.gate.limits, token.spend_cap
    await asked.parts.ledger.refresh(account.id, token.id)
    held = asked.parts.ledger.held(account.id)
    chat, at_once = account.requests_per_minute, account.concurrent_requests
    limits = AccountLimits(
        requests_per_minute=installation.requests_per_minute if chat is None else chat,
        other_requests_per_minute=installation.other_requests_per_minute,
        concurrent_requests=installation.concurrent_requests if at_once is None else at_once,
        token_requests_per_minute=token.requests_per_minute,
        token_spend_cap=cap,
        token_spend_cap_left=None if cap is None else asked.parts.ledger.left_of_cap(token.id, cap),
    )
    return Answer(
        AccountObject(
            id=account.id,
            name=account.name,
            credit_balance=asked.parts.ledger.available(account.id) + held,
            credits_held=held,
            created_at=iso(account.created_at),
            limits=limits,
        )
    )


# --- its transactions -----------------------------------------------------------------------------


class TransactionObject(Struct, frozen=True, rename="camel"):
    """`amount` is negative for a charge; `balance` is the account's after it."""

    id: str
    amount: int
    balance: int
    type: EntryKind
    description: str
    request_id: str | None
    created_at: str


class Pagination(Struct, frozen=True, rename="camel"):
    page: int
    limit: int
    total: int
    has_more: bool


class TransactionList(Struct, frozen=True):
    data: list[TransactionObject]
    pagination: Pagination


async def list_transactions(asked: Asked) -> Answer:
    page = _whole_number(asked, "page", default=1, most=PAGE_MAX)
    limit = _whole_number(asked, "limit", default=LIMIT_DEFAULT, most=LIMIT_MAX)
    await asked.take_place()
    account_id = asked.caller.account.id
    entries, total = await asked.parts.ledger.entries(account_id, page=page, limit=limit)
    return Answer(
        TransactionList(
            [transaction_object(entry) for entry in entries],
            Pagination(page, limit, total, page * limit < total),
        )
    )


def transaction_object(entry: Entry) -> TransactionObject:
    of_request = entry.kind in ("charge", "late_charge", "refund") and entry.ref.startswith("req_")
    return TransactionObject(
        # An account's entries are numbered without gaps, for good.
        id=f"txn_{entry.account_id.removeprefix('acc_')}_{entry.seq}",
        amount=entry.amount,
        balance=entry.balance_after,
        type=entry.kind,
        description=entry.description,
        request_id=entry.ref if of_request else None,
        created_at=iso(entry.created_at),
    )


_DIGITS = re.compile(r"[0-9]{1,10}")


def _whole_number(asked: Asked, name: str, *, default: int, most: int) -> int:
    values = asked.query.getlist(name)
    if not values:
        return default
    if len(values) > 1 or not _DIGITS.fullmatch(values[0]) or not 1 <= int(values[0]) <= most:
        raise InvalidRequest(f"{name} must be one whole number from 1 to {most}.", param=name)
    return int(values[0])


# --- its tokens -----------------------------------------------------------------------------------


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

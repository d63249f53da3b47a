"""What an account may see of its own: its credit, its limits and its transactions."""

import re

from msgspec import Struct

from tollway.api.operation import Answer, Asked
from tollway.clock import iso
from tollway.errors import InvalidRequest
from tollway.ledger.base import Entry, EntryKind

PAGE_MAX = 1_000_000_000
LIMIT_MAX = 100
LIMIT_DEFAULT = 20

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
    of_request = entry.kind in ("charge", "late_charge", "refund")
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

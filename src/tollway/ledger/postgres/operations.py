"""What the ledger says to `ledger_batch`, and what the answers mean."""

from typing import Any, Literal

import msgspec
from msgspec import Struct

from tollway.database.base import Row
from tollway.errors import (
    AuthenticationFailed,
    CreditsWhy,
    PermissionDenied,
    RequestError,
    Unavailable,
)
from tollway.ledger.base import Checkpoint, Hold, HoldAsk, NotEnough, Outcome, Recovered
from tollway.ledger.postgres.lanes import Answer, Operation
from tollway.ledger.postgres.leases import Purse
from tollway.ledger.rows import milliseconds

RETRY_AFTER_FAULT_SECONDS = 5.0

_encode = msgspec.json.Encoder().encode


class Open(Struct, gc=False):
    """A hold of ours: from which instance's lease it is, or a row (`leased` false)."""

    hold: Hold
    instance: str
    leased: bool
    checkpointed: bool = False


def hold_operation(
    ask: HoldAsk, instance_id: str, *, in_use: int, life_ms: int, final: bool
) -> Operation:
    return {
        "kind": "hold",
        "account": ask.account_id,
        "instance": instance_id,
        "id": ask.request_id,
        "token": ask.token_id,
        "price": ask.price_id,
        "amount": ask.amount_max,
        "least": ask.amount_min,
        "final": final,
        "in_use": in_use,
        "life_ms": life_ms,
        "created_at": milliseconds(ask.now),
    }


def hold_of(ask: HoldAsk, amount: int, available: int) -> Hold:
    return Hold(
        ask.request_id,
        ask.account_id,
        ask.token_id,
        ask.price_id,
        amount,
        available,
        ask.now,
    )


def why_not(ask: HoldAsk, answer: Answer, purse: Purse) -> RequestError | NotEnough:
    if answer.outcome == "not enough":
        assert answer.balance is not None
        assert answer.held is not None
        held = answer.held - purse.free
        return NotEnough(CreditsWhy("balance", answer.balance, held, answer.balance - held))
    if answer.outcome == "cap":
        assert ask.token_spend_cap is not None
        assert answer.cap_spent is not None
        assert answer.cap_held is not None
        left = max(0, ask.token_spend_cap - answer.cap_spent - answer.cap_held)
        return NotEnough(CreditsWhy("spend_cap", ask.token_spend_cap, answer.cap_held, left))
    if answer.outcome == "frozen":
        return PermissionDenied(
            "This account was frozen while the request was on its way.", code="account_frozen"
        )
    if answer.outcome == "expired":
        return AuthenticationFailed(
            "This token expired while the request was on its way.", code="token_expired"
        )
    return AuthenticationFailed(
        "This token was revoked while the request was on its way.", code="token_revoked"
    )


def no_database() -> Unavailable:
    return Unavailable(
        "The database cannot be reached now, so no request is taken. Try again later.",
        retry_after_seconds=RETRY_AFTER_FAULT_SECONDS,
    )


def settle_operation(
    ours: Open, outcome: Outcome, *, in_use: int, capped: bool, now: float
) -> Operation:
    hold, first = ours.hold, outcome.first_token_seconds
    return {
        "kind": "settle",
        "account": hold.account_id,
        "instance": ours.instance,
        "id": hold.request_id,
        "token": hold.token_id,
        "price": hold.price_id,
        "amount": hold.amount,
        "leased": ours.leased,
        "capped": capped,
        "checkpointed": ours.checkpointed,
        "cost": outcome.cost,
        "in_use": in_use,
        "description": (
            f"{outcome.model}: {outcome.input_tokens} + {outcome.output_tokens} tokens"
        ),
        "model": outcome.model,
        "status": outcome.status,
        "source": outcome.source,
        "prompt_tokens": outcome.input_tokens,
        "completion_tokens": outcome.output_tokens,
        "cached_tokens": outcome.cached_tokens,
        "reasoning_tokens": outcome.reasoning_tokens,
        "upstream": outcome.upstream,
        "upstream_id": outcome.upstream_id,
        "attempts": _encode(outcome.attempts).decode(),
        "client_request_id": outcome.client_request_id,
        "created_at": milliseconds(hold.held_at),
        "closed_at": milliseconds(now),
        "first_token_ms": None if first is None else milliseconds(first),
        "total_ms": milliseconds(outcome.total_seconds),
    }


def checkpoint_operation(ours: Open, checkpoint: Checkpoint) -> Operation:
    hold = checkpoint.hold
    return {
        "kind": "checkpoint",
        "account": hold.account_id,
        "instance": ours.instance,
        "id": hold.request_id,
        "token": hold.token_id,
        "price": hold.price_id,
        "amount": hold.amount,
        "leased": ours.leased,
        "model": checkpoint.model,
        "upstream": checkpoint.upstream,
        "prompt_tokens": checkpoint.input_tokens,
        "completion_tokens": checkpoint.output_tokens,
        "cached_tokens": checkpoint.cached_tokens,
        "reasoning_tokens": checkpoint.reasoning_tokens,
        "client_request_id": checkpoint.client_request_id,
        "created_at": milliseconds(hold.held_at),
        "closed_at": milliseconds(checkpoint.now),
    }


def recovered_from_journal(operation: Operation, answer: Answer) -> Recovered:
    return _recovered(
        operation["id"],
        operation["account"],
        "journal",
        operation["prompt_tokens"],
        operation["completion_tokens"],
        answer.paid,
        answer.unpaid,
    )


def recovered_from_checkpoint(row: Row) -> Recovered:
    request_id, account_id, *numbers = row
    return _recovered(request_id, account_id, "checkpoint", *numbers)


def _recovered(
    request_id: str, account_id: str, origin: Literal["journal", "checkpoint"], *numbers: Any
) -> Recovered:
    """Any: columns that the statement gives as whole numbers."""
    return Recovered(request_id, account_id, origin, *numbers)

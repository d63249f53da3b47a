"""What a chat completion could cost at most. Runs nothing and charges nothing."""

from typing import Literal

from msgspec import Struct

from tollway.api.operation import Answer, Asked
from tollway.gateway.authenticate import require_active_account
from tollway.gateway.policy import ignored_fields, require_allowed
from tollway.wire.requests import parse_chat_request


class Quote(Struct, frozen=True, rename="camel"):
    """The completion's part is for all the choices together (`n`). `creditsAvailable` is what this
    token may spend: the account's, or less where the token has a spend cap."""

    object: Literal["quote"]
    model: str
    prompt_tokens_max: int
    completion_tokens_max: int
    credits_max: int
    credits_available: int
    affordable: bool


async def quote(asked: Asked) -> Answer:
    """Refuses what the request would be refused for, but for lack of credit and its rate."""
    caller, parts = asked.caller, asked.parts
    require_active_account(caller)
    parsed = parse_chat_request(await asked.body())
    model = parts.catalogue.find(parsed.request.model, caller.token.models)
    require_allowed(model, parsed)
    ignored_fields(caller, model, parsed)
    await asked.take_place()
    cost = await parts.gate.cost(model, parsed)
    await parts.ledger.refresh(caller.account.id, caller.token.id)
    available = parts.ledger.available(caller.account.id)
    if (cap := caller.token.spend_cap) is not None:
        available = min(available, parts.ledger.left_of_cap(caller.token.id, cap))
    return Answer(
        Quote(
            "quote",
            model.id,
            cost.input_tokens_max,
            cost.choices * cost.output_tokens_max,
            cost.credits_max,
            available,
            cost.credits_max <= available,
        )
    )

"""A gate before a real ledger, for the tests of what is admitted and held. Prices are one credit a
token in and two a token out: the sums can be read."""

from typing import Any

import pytest
from tests.support.builders import chat_bytes
from tests.support.clock import FixedClock
from tests.unit.gateway.parts import PRICE, a_call, a_caller
from tests.unit.ledger.books import Books

from tollway.catalogue import Catalogue, Model
from tollway.errors import RequestError
from tollway.gateway.admit import Gate, Limits
from tollway.gateway.types import Admission, Caller
from tollway.ledger.base import HoldAsk
from tollway.rates.concurrency import Concurrency
from tollway.rates.memory import MemoryRateLimiter
from tollway.wire.requests import ParsedRequest, parse_chat_request

LIMITS = Limits(requests_per_minute=30, other_requests_per_minute=100, concurrent_requests=64)
INPUT = 100  # what the tokenizer counts


class OneModel(Catalogue):
    def __init__(self, model: Model) -> None:
        super().__init__()
        self._models[model.id] = model


class Door:
    """A gate with a real ledger, and what it was asked."""

    def __init__(self, books: Books, model: Model, counted: int | None = INPUT) -> None:
        self.books = books
        self.clock: FixedClock = books.clock
        self.concurrency = Concurrency()
        self.limiter = MemoryRateLimiter(books.clock)
        self.ledger = books.ledger
        self.counted = counted
        self.gate = Gate(
            OneModel(model), self._count, self.limiter, self.concurrency, self.ledger, LIMITS
        )
        self._calls = 0

    async def _count(
        self, model: Model, parsed: ParsedRequest, output_tokens_max: int
    ) -> int | None:
        return self.counted

    async def admit(
        self,
        caller: Caller | None = None,
        credits_max: bytes | None = None,
        timeout_ms: bytes | None = None,
        idempotency_key: bytes | None = None,
        **fields: Any,
    ) -> Admission:
        self._calls += 1
        body = chat_bytes(**fields)
        call = a_call(
            body,
            request_id=f"req_{self._calls:032x}",
            credits_max=credits_max,
            timeout_ms=timeout_ms,
            idempotency_key=idempotency_key,
        )
        return await self.gate.admit(caller or a_caller(), call, parse_chat_request(body))

    async def refusal(self, caller: Caller | None = None, **fields: Any) -> RequestError:
        with pytest.raises(RequestError) as refused:
            await self.admit(caller, **fields)
        return refused.value

    async def places_left(self) -> int:
        return (await self.limiter.state("chat:acc_1", 30)).remaining


async def has_taken_nothing(door: Door) -> bool:
    return (
        door.concurrency.running("acc_1") == 0
        and await door.places_left() == 30
        and door.ledger.available("acc_1") == 10_000
    )


def hold_ask(amount: int) -> HoldAsk:
    return HoldAsk(f"req_other{amount}", "acc_1", "tok_1", PRICE.id, amount, amount, None, 0.0)

"""What `ledger/base.py` promises, as tests that every implementation runs; of its keys see
`idempotency_suite.py`."""

import asyncio
from functools import partial
from typing import Any

import msgspec
import pytest
from tests.unit.ledger.books import (
    INPUT_PRICE,
    MODEL,
    OUTPUT_PRICE,
    Books,
    a_checkpoint,
    an_outcome,
)

from tollway.catalogue import Price
from tollway.errors import CreditsWhy, PermissionDenied, Refused
from tollway.ledger.base import Checkpoint, NotEnough, Recovered, Settlement
from tollway.pricing import charge
from tollway.settings.values import RATE_MAX
from tollway.usage import By, Sums, sums
from tollway.wire.usage import TOKENS_BELIEVED_MAX

DAY = 20_780  # since 1970, when the tests' clock stands still
BODY = b"\x01" * 32
OTHER_BODY = b"\x02" * 32


class LedgerSuite:
    """A subclass gives the fixture `books`."""

    # --- holds ----------------------------------------------------------------------------------

    async def test_a_hold_takes_what_it_could_cost_from_what_is_available(
        self, books: Books
    ) -> None:
        account = await books.account(100)

        hold = await books.hold(account, 30)

        assert (hold.amount, hold.available) == (30, 70)
        assert (books.ledger.available(account), books.ledger.held(account)) == (70, 30)
        assert books.ledger.open_holds() == [hold]

    async def test_a_hold_is_cut_to_what_is_available_where_that_is_enough(
        self, books: Books
    ) -> None:
        account = await books.account(100)

        hold = await books.hold(account, 130, at_least=100)

        assert (hold.amount, hold.available) == (100, 0)

    async def test_a_hold_beyond_the_balance_is_refused_and_says_what_there_is(
        self, books: Books
    ) -> None:
        account = await books.account(100)
        await books.hold(account, 60)

        with pytest.raises(NotEnough) as refusal:
            await books.hold(account, 41)

        assert refusal.value.why == CreditsWhy("balance", value=100, held=60, available=40)
        assert books.ledger.held(account) == 60

    async def test_a_hold_of_nothing_is_a_hold(self, books: Books) -> None:
        account = await books.account()

        settlement = await books.charge(account, 0, cost=0)

        assert settlement == Settlement(0, 0, 0)

    async def test_of_200_requests_at_once_exactly_those_that_can_be_paid_are_admitted(
        self, books: Books
    ) -> None:
        account = await books.account(370)

        answers = await asyncio.gather(
            *(books.charge(account, 10, cost=10) for _ in range(200)), return_exceptions=True
        )

        admitted = [answer for answer in answers if isinstance(answer, Settlement)]
        assert len(admitted) == 37
        assert await books.balance(account) == 0

    async def test_a_hold_asks_each_time_whether_the_account_may_pay(self, books: Books) -> None:
        account = await books.account(100)
        hold = await books.hold(account, 10)
        books.frozen.add(account)

        with pytest.raises(PermissionDenied):
            await books.hold(account, 10)

        assert (await books.ledger.settle(hold, an_outcome(4))).charged == 4

    async def test_an_account_made_just_now_has_nothing(self, books: Books) -> None:
        account = await books.account()

        assert (books.ledger.available(account), books.ledger.held(account)) == (0, 0)
        with pytest.raises(NotEnough):
            await books.hold(account, 1)

    async def test_an_entry_reads_the_same_when_it_comes_from_the_file(self, books: Books) -> None:
        account = await books.account(100)
        books.clock.advance(0.1827)

        added, _ = await books.ledger.add(account, 5, kind="top_up", ref="a", description="prepaid")

        entries, _ = await books.ledger.entries(account, page=1, limit=1)
        assert entries == [added]

    # --- spend caps -----------------------------------------------------------------------------

    async def test_a_spend_cap_counts_what_is_spent_and_what_is_held(self, books: Books) -> None:
        account = await books.account(1000)
        capped = {"token_id": await books.token(account, 100, "tok_1"), "spend_cap": 100}
        await books.charge(account, 60, cost=50, **capped)
        await books.hold(account, 30, **capped)

        with pytest.raises(NotEnough) as refusal:
            await books.hold(account, 21, **capped)

        assert refusal.value.why == CreditsWhy("spend_cap", value=100, held=30, available=20)
        assert books.ledger.left_of_cap("tok_1", 100) == 20
        assert (await books.hold(account, 30, at_least=1, **capped)).amount == 20

    async def test_a_spend_cap_is_exact_among_200_requests_at_once(self, books: Books) -> None:
        account = await books.account(10_000)
        capped = {"token_id": await books.token(account, 100, "tok_1"), "spend_cap": 100}

        answers = await asyncio.gather(
            *(books.charge(account, 7, cost=7, **capped) for _ in range(200)),
            return_exceptions=True,
        )

        assert sum(isinstance(answer, Settlement) for answer in answers) == 14
        assert await books.balance(account) == 10_000 - 98

    async def test_a_spend_cap_outlives_a_crash(self, books: Books) -> None:
        account = await books.account(1000)
        capped = {"token_id": await books.token(account, 100, "tok_1"), "spend_cap": 100}
        await books.charge(account, 60, cost=60, **capped)
        await books.crash()

        with pytest.raises(NotEnough):
            await books.hold(account, 41, **capped)

        assert (await books.hold(account, 40, **capped)).amount == 40

    async def test_a_refund_gives_nothing_back_to_a_spend_cap(self, books: Books) -> None:
        account = await books.account(1000)
        capped = {"token_id": await books.token(account, 100, "tok_1"), "spend_cap": 100}
        await books.charge(account, 60, cost=60, **capped)

        await books.ledger.add(account, 60, kind="refund", ref="req_0001", description="refund")

        assert books.ledger.available(account) == 1000
        assert books.ledger.left_of_cap("tok_1", 100) == 40
        await books.reopen()
        assert books.ledger.left_of_cap("tok_1", 100) == 40

    # --- settlements ----------------------------------------------------------------------------

    async def test_a_settlement_charges_the_cost_and_gives_the_rest_back(
        self, books: Books
    ) -> None:
        account = await books.account(100)
        hold = await books.hold(account, 30)
        other = await books.hold(account, 20)

        settlement = await books.ledger.settle(hold, an_outcome(11))

        assert settlement == Settlement(charged=11, shortfall=0, available=69)
        assert await books.balance(account) == 89
        assert books.ledger.open_holds() == [other]

    async def test_a_charge_is_never_more_than_its_hold(self, books: Books) -> None:
        account = await books.account(100)

        settlement = await books.charge(account, 30, cost=47)

        assert settlement == Settlement(charged=30, shortfall=17, available=70)

    async def test_what_cost_nothing_leaves_no_entry_and_a_receipt(self, books: Books) -> None:
        account = await books.account(100)
        hold = await books.hold(account, 30)

        await books.ledger.settle(hold, an_outcome(0, status="failed"))

        _, total = await books.ledger.entries(account, page=1, limit=10)
        receipt = await books.ledger.receipt(hold.request_id)
        assert total == 1
        assert receipt is not None
        assert (receipt.charged, receipt.reserved, receipt.status) == (0, 30, "failed")

    async def test_a_hold_ends_once(self, books: Books) -> None:
        account = await books.account(100)
        hold = await books.hold(account, 30)
        await books.ledger.settle(hold, an_outcome(10))

        with pytest.raises(AssertionError, match="settled before"):
            books.ledger.settle(hold, an_outcome(10))

        assert books.ledger.available(account) == 90
        assert await books.balance(account) == 90

    async def test_a_waiter_that_leaves_does_not_undo_the_charge(self, books: Books) -> None:
        account = await books.account(100)
        hold = await books.hold(account, 30)

        books.ledger.settle(hold, an_outcome(10)).cancel()

        await books.charge(account, 1, cost=0)
        assert await books.balance(account) == 90

    async def test_a_charge_is_on_disk_when_it_is_told(self, books: Books) -> None:
        account = await books.account(100)
        await books.charge(account, 30, cost=12)

        await books.crash()

        assert await books.balance(account) == 88
        assert books.ledger.available(account) == 88

    async def test_a_hold_in_flight_ends_with_the_process(self, books: Books) -> None:
        account = await books.account(100)
        await books.hold(account, 30)

        await books.crash()

        assert (books.ledger.available(account), books.ledger.open_holds()) == (100, [])

    async def test_a_receipt_has_all_that_the_charge_is_made_of(self, books: Books) -> None:
        account = await books.account(100)
        hold = await books.hold(account, 30)
        await books.ledger.settle(hold, an_outcome(35, client_id="mine"))

        receipt = await books.ledger.receipt(hold.request_id)

        assert receipt is not None
        assert (receipt.input_tokens, receipt.output_tokens) == (1, 17)
        assert (receipt.input_credits_per_million, receipt.output_credits_per_million) == (
            INPUT_PRICE,
            OUTPUT_PRICE,
        )
        assert (receipt.reserved, receipt.charged, receipt.shortfall) == (30, 30, 5)
        assert (receipt.model, receipt.remaining) == (MODEL, 70)
        assert (receipt.upstream, receipt.upstream_id) == ("gpu-1", "chatcmpl-7")
        assert (receipt.client_request_id, receipt.account_id) == ("mine", account)
        assert (receipt.first_token_ms, receipt.total_ms) == (250, 1500)
        assert receipt.attempts == an_outcome(35).attempts

    @pytest.mark.parametrize(
        ("own_rates", "effective", "cost"),
        [
            ((None, None), (700, 4000), 3),
            ((70, 40_000), (70, 40_000), 11),
            ((0, None), (0, 4000), 3),
        ],
    )
    async def test_a_receipt_and_the_books_know_the_rates_of_cached_tokens_and_reasoning(
        self, books: Books, own_rates: tuple[Any, Any], effective: tuple[int, int], cost: int
    ) -> None:
        await books.database.execute(
            (
                "INSERT INTO prices VALUES ('price_2', ?, 700, 4000, 0, ?, ?)",
                (MODEL, *own_rates),
            )
        )
        account = await books.account(100)
        ask = msgspec.structs.replace(books.ask(account, 30), price_id="price_2")
        hold = await books.ledger.hold(ask)
        outcome = msgspec.structs.replace(
            an_outcome(cost),
            input_tokens=1000,
            output_tokens=500,
            cached_tokens=800,
            reasoning_tokens=222,
        )
        await books.ledger.settle(hold, outcome)

        receipt = await books.ledger.receipt(hold.request_id)

        assert receipt is not None
        assert (receipt.cached_tokens, receipt.reasoning_tokens) == (800, 222)
        assert (receipt.cached_credits_per_million, receipt.reasoning_credits_per_million) == (
            effective
        )
        assert await books.violations() == []

    async def test_there_is_no_receipt_of_a_request_that_never_was(self, books: Books) -> None:
        assert await books.ledger.receipt("req_9") is None

    # --- entries that are no charge -------------------------------------------------------------

    async def test_the_same_kind_and_reference_adds_once(self, books: Books) -> None:
        account = await books.account()

        answers = await asyncio.gather(
            *(books.top_up(account, 50, ref="invoice 7") for _ in range(5))
        )

        assert answers.count(True) == 1
        assert (books.ledger.available(account), await books.balance(account)) == (50, 50)

    async def test_what_is_taken_away_is_at_most_what_is_available(self, books: Books) -> None:
        account = await books.account(100)
        await books.hold(account, 30)

        with pytest.raises(Refused, match="70 credits available"):
            await self._adjust(books, account, -71, ref="a")
        entry, added = await self._adjust(books, account, -70, ref="b")

        assert (added, entry.amount, entry.balance_after) == (True, -70, 30)
        assert books.ledger.available(account) == 0

    async def test_taking_away_twice_by_one_reference_takes_once(self, books: Books) -> None:
        account = await books.account(100)
        first, _ = await self._adjust(books, account, -60, ref="a")

        while_it_would_do = await self._adjust(books, account, -10, ref="a")
        where_it_would_not = await self._adjust(books, account, -60, ref="a")

        assert while_it_would_do == where_it_would_not == (first, False)
        assert (books.ledger.available(account), await books.balance(account)) == (40, 40)

    async def test_a_waiter_that_leaves_does_not_undo_an_addition(self, books: Books) -> None:
        account = await books.account(100)
        waiters = [
            asyncio.create_task(books.top_up(account, 7, ref="plus")),
            asyncio.create_task(self._adjust(books, account, -5, ref="minus")),
        ]
        await asyncio.sleep(0)

        for waiter in waiters:
            waiter.cancel()

        await asyncio.wait(waiters)
        async with asyncio.timeout(10):
            while await books.balance(account) != 102:  # noqa: ASYNC110 (nobody waits for it any more)
                await asyncio.sleep(0.01)
            while books.ledger.available(account) != 102:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def test_a_refund_can_be_spent(self, books: Books) -> None:
        account = await books.account(10)
        hold = await books.hold(account, 10)
        await books.ledger.settle(hold, an_outcome(10))

        await books.ledger.add(account, 4, kind="refund", ref=hold.request_id, description="sorry")

        assert (await books.charge(account, 4, cost=4)).charged == 4

    async def test_nothing_is_added_to_no_account(self, books: Books) -> None:
        with pytest.raises(Refused, match="no account"):
            await books.top_up("nobody", 5, ref="x")

    async def test_what_goes_with_an_entry_is_written_with_it_or_not_at_all(
        self, books: Books
    ) -> None:
        account = await books.account(10)
        audit = (
            "INSERT INTO audit VALUES (?, 'op', 'adjust', ?, 'why', '{}', 0)",
            ("audit_1", account),
        )
        add = partial(
            books.ledger.add, account, 5, kind="adjustment", description="by hand", audit=audit
        )
        await add(ref="a")

        with pytest.raises(Refused):  # its id is taken
            await add(ref="b")

        assert (books.ledger.available(account), await books.balance(account)) == (15, 15)

    async def test_entries_come_newest_first_a_page_at_a_time(self, books: Books) -> None:
        account = await books.account(100)
        for cost in (1, 2, 3, 4):
            await books.charge(account, 10, cost=cost)

        first, total = await books.ledger.entries(account, page=1, limit=2)
        third, _ = await books.ledger.entries(account, page=3, limit=2)
        beyond, _ = await books.ledger.entries(account, page=4, limit=2)

        assert total == 5
        assert [(entry.seq, entry.amount, entry.balance_after) for entry in first] == [
            (5, -4, 90),
            (4, -3, 94),
        ]
        assert [(entry.kind, entry.ref) for entry in third] == [("top_up", f"first:{account}")]
        assert beyond == []

    async def test_recent_requests_are_known_again_after_a_start(self, books: Books) -> None:
        account = await books.account(100)
        await books.charge(account, 10, cost=1)

        assert await books.ledger.admissions_since(0.0) == [(account, books.clock.now())]

    async def test_a_zero_byte_in_what_an_upstream_says_loses_no_charge(self, books: Books) -> None:
        account = await books.account(100)
        hold = await books.hold(account, 10)
        outcome = msgspec.structs.replace(an_outcome(7), upstream_id="chatcmpl-\0")

        await books.ledger.settle(hold, outcome)

        receipt = await books.ledger.receipt(hold.request_id)
        assert receipt is not None
        assert receipt.charged == 7

    # --- checkpoints and recovery ---------------------------------------------------------------

    async def test_a_crash_charges_what_the_last_checkpoint_had_delivered(
        self, books: Books
    ) -> None:
        account = await books.account(100)
        hold = await books.hold(account, 50)
        started = books.clock.now()
        for cost in (4, 13):
            books.clock.advance(2)
            await books.ledger.checkpoint([a_checkpoint(hold, cost, books.clock.now())])

        await books.crash()

        receipt = await books.ledger.receipt(hold.request_id)
        assert books.recovered == [
            Recovered(hold.request_id, account, "checkpoint", 1, 6, charged=13, shortfall=0)
        ]
        assert receipt is not None
        assert (receipt.status, receipt.source) == ("interrupted", "checkpoint")
        assert (receipt.charged, receipt.remaining, receipt.total_ms) == (13, 87, 4000)
        assert receipt.created_at == started
        assert books.ledger.available(account) == 87
        assert await books.violations() == []

    async def test_recovery_is_done_once(self, books: Books) -> None:
        account = await books.account(100)
        hold = await books.hold(account, 50)
        await books.ledger.checkpoint([a_checkpoint(hold, 13, books.clock.now())])
        await books.crash()

        await books.reopen()

        assert books.recovered == []
        assert await books.balance(account) == 87

    async def test_a_checkpoint_never_costs_more_than_the_hold(self, books: Books) -> None:
        account = await books.account(100)
        hold = await books.hold(account, 10)
        await books.ledger.checkpoint([a_checkpoint(hold, 14, books.clock.now())])

        await books.crash()

        assert [(r.charged, r.shortfall) for r in books.recovered] == [(10, 4)]
        assert await books.violations() == []

    async def test_a_checkpoint_of_nothing_delivered_costs_nothing(self, books: Books) -> None:
        account = await books.account(100)
        hold = await books.hold(account, 10)
        await books.ledger.checkpoint([a_checkpoint(hold, 0, books.clock.now())])

        await books.crash()

        receipt = await books.ledger.receipt(hold.request_id)
        assert receipt is not None
        assert receipt.charged == 0
        assert await books.violations() == []

    async def test_a_checkpoint_is_charged_by_the_rule_that_a_reply_is(self, books: Books) -> None:
        price = Price("price_2", 700, 4000, 70, 5000)
        await books.database.execute(
            ("INSERT INTO prices VALUES ('price_2', ?, 700, 4000, 0, 70, 5000)", (MODEL,))
        )
        account = await books.account(100)
        used = [
            *((25, 80, 0, 0), (0, 250, 0, 0), (1, 250, 0, 0), (1000, 75, 0, 0), (1, 0, 0, 0)),
            *((1000, 75, 999, 75), (1000, 75, 1, 1), (0, 200, 0, 200), (1, 0, 1, 0)),
        ]
        for tokens in used:
            ask = msgspec.structs.replace(books.ask(account, 10), price_id=price.id)
            hold = await books.ledger.hold(ask)
            await books.ledger.checkpoint(
                [Checkpoint(hold, MODEL, None, *tokens[:2], None, 0.0, *tokens[2:])]
            )

        await books.crash()

        assert [r.charged for r in books.recovered] == [charge(price, *tokens) for tokens in used]
        assert await books.violations() == []

    async def test_the_most_that_an_upstream_is_believed_is_kept_and_recovered_at_any_price(
        self, books: Books
    ) -> None:
        price = Price("price_2", RATE_MAX, RATE_MAX)
        await books.database.execute(
            (
                "INSERT INTO prices VALUES (?, ?, ?, ?, 0, NULL, NULL)",
                (price.id, MODEL, RATE_MAX, RATE_MAX),
            )
        )
        account = await books.account(100)
        used = (TOKENS_BELIEVED_MAX, TOKENS_BELIEVED_MAX)
        cost = charge(price, *used)
        settled, checkpointed = [
            await books.ledger.hold(
                msgspec.structs.replace(books.ask(account, 30), price_id=price.id)
            )
            for _ in range(2)
        ]
        outcome = msgspec.structs.replace(
            an_outcome(cost), input_tokens=used[0], output_tokens=used[1]
        )
        await books.ledger.settle(settled, outcome)
        await books.ledger.checkpoint([Checkpoint(checkpointed, MODEL, None, *used, None, 0.0)])

        await books.crash()

        assert [(r.charged, r.shortfall) for r in books.recovered] == [(30, cost - 30)]
        assert await books.violations() == []

    async def test_checkpoints_of_one_account_together_stay_within_its_balance(
        self, books: Books
    ) -> None:
        account = await books.account(100)
        holds = [await books.hold(account, 40), await books.hold(account, 60)]
        await books.ledger.checkpoint([a_checkpoint(h, h.amount, 0.0) for h in holds])

        await books.crash()

        assert await books.balance(account) == 0
        assert await books.violations() == []

    async def test_a_settled_stream_leaves_no_checkpoint(self, books: Books) -> None:
        account = await books.account(100)
        hold = await books.hold(account, 50)
        checkpoint = a_checkpoint(hold, 13, books.clock.now())
        await books.ledger.checkpoint([checkpoint])
        await books.ledger.settle(hold, an_outcome(20))
        await books.ledger.checkpoint([checkpoint])  # too late

        await books.crash()

        assert books.recovered == []
        assert await books.balance(account) == 80

    async def test_a_checkpoint_goes_with_the_charge_of_its_hold_and_with_no_other(
        self, books: Books
    ) -> None:
        account = await books.account(100)
        holds = [await books.hold(account, 10) for _ in range(4)]
        await books.ledger.checkpoint([a_checkpoint(h, 3, 0.0) for h in holds])
        *ended, running = holds
        await asyncio.gather(*(books.ledger.settle(hold, an_outcome(5)) for hold in ended))

        left = await books.database.fetch("SELECT hold_id FROM checkpoints")

        assert [tuple(row) for row in left] == [(running.request_id,)]

    async def test_a_recovered_charge_counts_for_the_spend_cap(self, books: Books) -> None:
        account = await books.account(100)
        capped = {"token_id": await books.token(account, 50, "tok_1"), "spend_cap": 50}
        hold = await books.hold(account, 50, **capped)
        await books.ledger.checkpoint([a_checkpoint(hold, 30, books.clock.now())])

        await books.crash()

        with pytest.raises(NotEnough):
            await books.hold(account, 21, **capped)
        assert await books.violations() == []

    # --- sums -----------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        ("by", "key"), [("account", "acc_1"), ("model", MODEL), ("token", "tok_1"), ("day", DAY)]
    )
    async def test_what_was_used_is_summed(self, books: Books, by: By, key: str | int) -> None:
        account = await books.account(100)
        await books.token(account, None, "tok_1")
        for cost in (5, 0, 8):
            await books.charge(account, 10, cost, token_id="tok_1")
        await books.hold(account, 10, token_id="tok_1")  # it runs still

        summed = await sums(books.database, by, 4_000_000.0, 21_474_837.0, account)

        assert summed == [Sums(key, 3, input_tokens=1, output_tokens=6, credits=13)]

    # --- parts ----------------------------------------------------------------------------------

    async def _adjust(self, books: Books, account: str, amount: int, ref: str):
        return await books.ledger.add(
            account, amount, kind="adjustment", ref=ref, description="by hand"
        )

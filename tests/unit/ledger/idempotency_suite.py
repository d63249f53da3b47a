"""What a ledger's `keys` promise, as tests that every implementation runs."""

import asyncio

import pytest
from tests.unit.ledger.books import Books, a_checkpoint, an_outcome

from tollway.errors import IdempotencyConflict, IdempotencyMismatch
from tollway.ledger.base import Earlier

BODY = b"\x01" * 32
OTHER_BODY = b"\x02" * 32


class IdempotencySuite:
    """A subclass gives the fixture `books`."""

    async def test_a_fresh_key_may_run(self, books: Books) -> None:
        assert await self._claim(books, "req_1") is None

    async def test_a_key_that_runs_is_refused_to_others(self, books: Books) -> None:
        answers = await asyncio.gather(
            *(self._claim(books, f"req_{n}") for n in range(5)), return_exceptions=True
        )

        conflicts = [a for a in answers if isinstance(a, IdempotencyConflict)]
        assert answers.count(None) == 1
        assert [(c.code, c.retry) for c in conflicts] == [("idempotency_in_progress", True)] * 4

    async def test_a_key_is_an_accounts_own(self, books: Books) -> None:
        assert await self._claim(books, "req_1", account="acc_1") is None
        assert await self._claim(books, "req_2", account="acc_2") is None

    async def test_a_key_with_another_body_is_refused_while_it_runs_and_after(
        self, books: Books
    ) -> None:
        account = await books.account(100)
        hold = await self._claimed_hold(books, account)

        with pytest.raises(IdempotencyMismatch):
            await self._claim(books, "req_8", body=OTHER_BODY)
        await books.ledger.settle(hold, an_outcome(5))
        with pytest.raises(IdempotencyMismatch):
            await self._claim(books, "req_9", body=OTHER_BODY)

    @pytest.mark.parametrize("crash", [False, True])
    @pytest.mark.parametrize(("cost", "status"), [(5, "failed"), (0, "completed")])
    async def test_a_key_is_completed_with_its_charge_or_its_reply(
        self, books: Books, cost: int, status: str, crash: bool
    ) -> None:
        account = await books.account(100)
        hold = await self._claimed_hold(books, account)
        await books.ledger.settle(hold, an_outcome(cost, status=status))
        if crash:
            await books.crash()

        assert await self._claim(books, "req_9") == Earlier(hold.request_id, None)
        assert await self._claim(books, "req_9") == Earlier(hold.request_id, None)

    async def test_a_key_that_looks_like_an_escape_is_itself(self, books: Books) -> None:
        account = await books.account(100)
        key = r"order\u0000"
        hold = await books.hold(account, 10)
        await books.ledger.keys.claim(account, key, BODY, hold.request_id)
        await books.ledger.settle(hold, an_outcome(7))

        earlier = await books.ledger.keys.claim(account, key, BODY, "req_9")

        assert earlier == Earlier(hold.request_id, None)

    @pytest.mark.parametrize("crash", [False, True])
    async def test_a_key_is_free_again_where_nothing_was_charged_or_completed(
        self, books: Books, crash: bool
    ) -> None:
        account = await books.account(100)
        hold = await self._claimed_hold(books, account)
        await books.ledger.settle(hold, an_outcome(0, status="failed"))
        if crash:
            await books.crash()

        assert await self._claim(books, "req_9") is None

    async def test_a_key_is_free_again_after_a_refusal(self, books: Books) -> None:
        await self._claim(books, "req_1")

        books.ledger.keys.free("req_1")

        assert await self._claim(books, "req_2") is None
        books.ledger.keys.free("req_1")  # too late: the key is another's
        with pytest.raises(IdempotencyConflict):
            await self._claim(books, "req_3")

    async def test_a_client_that_left_while_it_claimed_has_not_claimed(self, books: Books) -> None:
        claiming = asyncio.create_task(self._claim(books, "req_1"))
        await asyncio.sleep(0)

        claiming.cancel()
        await asyncio.wait([claiming])

        assert await self._claim(books, "req_2") is None

    async def test_a_crash_frees_the_key_of_what_was_not_charged(self, books: Books) -> None:
        account = await books.account(100)
        await self._claimed_hold(books, account)

        await books.crash()

        assert await self._claim(books, "req_9") is None

    async def test_a_crash_completes_the_key_of_what_a_checkpoint_charges(
        self, books: Books
    ) -> None:
        account = await books.account(100)
        hold = await self._claimed_hold(books, account)
        await books.ledger.checkpoint([a_checkpoint(hold, 3, books.clock.now())])

        await books.crash()

        assert await self._claim(books, "req_9") == Earlier(hold.request_id, None)

    async def test_a_reply_is_kept_with_the_settlement_that_it_tells_of(self, books: Books) -> None:
        account = await books.account(100)
        hold = await self._claimed_hold(books, account)

        await books.ledger.settle(
            hold, an_outcome(5), lambda settlement: b"%d left" % settlement.available
        )

        await books.crash()
        assert await self._claim(books, "req_9") == Earlier(hold.request_id, b"95 left")

    async def test_a_key_lives_for_a_day(self, books: Books) -> None:
        account = await books.account(100)
        hold = await self._claimed_hold(books, account)
        await books.ledger.settle(hold, an_outcome(5))
        books.clock.advance(24 * 3600 - 1)
        assert await self._claim(books, "req_8") is not None

        books.clock.advance(1)

        assert await self._claim(books, "req_9") is None

    async def test_a_sweep_deletes_what_is_older_than_a_day(self, books: Books) -> None:
        account = await books.account(100)
        hold = await self._claimed_hold(books, account)
        await books.ledger.settle(hold, an_outcome(5))
        books.clock.advance(24 * 3600)
        await self._claim(books, "req_8", key="another")

        await books.ledger.keys.sweep()

        rows = await books.database.fetch("SELECT key FROM idempotency")
        assert rows == [("another",)]

    # --- parts ----------------------------------------------------------------------------------

    async def _claim(
        self,
        books: Books,
        request_id: str,
        *,
        account: str = "acc_1",
        key: str = "key",
        body: bytes = BODY,
    ) -> Earlier | None:
        return await books.ledger.keys.claim(account, key, body, request_id)

    async def _claimed_hold(self, books: Books, account: str):
        ask = books.ask(account, 20)
        await self._claim(books, ask.request_id, account=account)
        return await books.ledger.hold(ask)

"""The life of one request, from its bytes to its settled charge. Read `serve` from top to bottom.

Settlement cannot be lost to a cancelled task: `ledger.settle` has queued it when it returns, and
awaiting it only waits for the disk. A client that leaves cancels the task that runs `serve`; so
does a drain that has run out of time.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from tollway.clock import Clock
from tollway.errors import DeadlinePassed, InternalFault, RequestError, Unavailable
from tollway.gateway.admit import Gate
from tollway.gateway.authenticate import Authenticator, require_active_account, require_scope
from tollway.gateway.claim import claim_key, stored_reply
from tollway.gateway.relay import Answer, Silences, WholeAnswer, relay
from tollway.gateway.route import Router
from tollway.gateway.settle import outcome_of, settlement_of
from tollway.gateway.types import Admission, Call, Caller, Meter, Reply
from tollway.ledger.base import Ledger, Outcome, Settlement
from tollway.wire.requests import parse_chat_request

CHAT_SCOPE = "llm-all"

_CLIENT_LEFT = Unavailable("The client has left.", code="client_left")
"""For the access log: nobody is told."""
_STOPPING = Unavailable(
    "The server is being stopped. Send the request again.", retry_after_seconds=1
)

log = logging.getLogger("tollway.gateway")


def _why_cancelled(reply: Reply) -> RequestError:
    return _CLIENT_LEFT if reply.gone else _STOPPING


class Observer(Protocol):
    """Counts requests and writes the access log."""

    def refused(self, call: Call, caller: Caller | None, error: RequestError) -> None: ...

    def settled(
        self,
        admission: Admission,
        outcome: Outcome,
        settlement: Settlement,
        error: RequestError | None,
        reply: Reply,
    ) -> None:
        """`error` is what the client is told, if it is told one; `reply` whether it can be."""
        ...


class Pipeline:
    def __init__(
        self,
        authenticator: Authenticator,
        gate: Gate,
        router: Router,
        ledger: Ledger,
        observer: Observer,
        clock: Clock,
        *,
        store_replies: bool = False,
    ) -> None:
        self._authenticator = authenticator
        self._gate = gate
        self._router = router
        self._ledger = ledger
        self._observer = observer
        self._monotonic = clock.monotonic
        self._store_replies = store_replies
        self._silences = Silences()
        self.running: dict[str, tuple[Admission, Meter]] = {}
        """The requests in flight by id, for checkpoints and for a drain."""

    async def serve(self, call: Call, reply: Reply) -> None:
        caller = None
        try:
            caller = self._authenticator.cached_caller(call.authorization)
            if caller is None:
                caller = await self._authenticator.authenticate(call.authorization, call.address)
            require_scope(caller, CHAT_SCOPE)
            require_active_account(caller)
            if call.refusal is not None:
                raise call.refusal
            parsed = parse_chat_request(call.body)
            if call.idempotency_key is not None:
                replay = await claim_key(call, caller, self._ledger.keys)
                if replay is not None:
                    reply.replay(replay.request_id, replay.reply, await self._gate.standing(caller))
                    return
            call.body = b""  # it may be large, and the request long
            try:
                admission = await self._gate.admit(caller, call, parsed)
            except BaseException:
                # Nothing was charged: the key, where there is one, may be used again.
                self._ledger.keys.free(call.request_id)
                raise
        except RequestError as error:
            await self._refuse(call, caller, error, reply)
            return
        try:
            await self._run(admission, reply)
        finally:
            self._gate.leave(admission)

    async def _run(self, admission: Admission, reply: Reply) -> None:
        meter = Meter()
        answer: Answer | None = None
        self.running[admission.call.request_id] = (admission, meter)
        try:
            if admission.deadline is None:
                route = self._router.route(admission)
                answer = await relay(route, admission, reply, meter, self._silences)
            else:
                answer = await self._relay_in_time(admission, admission.deadline, reply, meter)
        except RequestError as error:
            meter.error = error
        except asyncio.CancelledError:
            meter.status = "interrupted"
            meter.error = _why_cancelled(reply)
        except Exception:
            # Whatever it was, the hold must end and the client be told.
            log.exception("request %s failed on a fault of the program", admission.call.request_id)
            meter.error = InternalFault()
        finally:
            del self.running[admission.call.request_id]
        outcome = outcome_of(admission, meter, self._monotonic())
        render = self._stored_reply(admission, answer, outcome) if self._store_replies else None
        settling = self._ledger.settle(admission.hold, outcome, render)
        self._router.settled(outcome, admission.hold)
        try:
            settlement = await settling
        except asyncio.CancelledError:
            # Nobody waits for the disk any more. What is charged is the same.
            error = meter.error or _why_cancelled(reply)
            as_expected = settlement_of(admission.hold, outcome)
            self._observer.settled(admission, outcome, as_expected, error, reply)
            raise
        self._observer.settled(admission, outcome, settlement, meter.error, reply)
        if answer is not None:
            answer.finish(reply, outcome, settlement)
        elif meter.error is not None:
            await self._tell(admission, meter.error, settlement, reply)

    async def _relay_in_time(
        self, admission: Admission, deadline: float, reply: Reply, meter: Meter
    ) -> Answer:
        """The client's own deadline, over all attempts. When it passes, the relay is cancelled as
        by a client that leaves: the upstream is told at once, and nothing is held against it."""
        seconds_left = deadline - self._monotonic()
        if seconds_left > 0:
            try:
                async with asyncio.timeout(seconds_left):
                    route = self._router.route(admission)
                    return await relay(route, admission, reply, meter, self._silences)
            except TimeoutError:
                pass
        seconds = deadline - admission.call.began
        raise DeadlinePassed(
            f"The reply was not there within the {seconds * 1000:.0f} ms that X-Tollway-Timeout-Ms "
            "allows. Allow more, or ask for less with max_tokens."
        )

    def _stored_reply(
        self, admission: Admission, answer: Answer | None, outcome: Outcome
    ) -> Callable[[Settlement], bytes] | None:
        """What is kept for the request's Idempotency-Key, in the settlement's own transaction: no
        stream, and never a confidential model's reply."""
        if not isinstance(answer, WholeAnswer) or admission.model.confidential:
            return None

        def render(settlement: Settlement) -> bytes:
            body = answer.body(outcome, settlement)
            return stored_reply(settlement.charged, settlement.available, body)

        return render

    async def _tell(
        self, admission: Admission, error: RequestError, settlement: Settlement, reply: Reply
    ) -> None:
        if reply.begun:
            reply.break_stream(settlement, error)
            return
        standing = await self._gate.standing(admission.caller)
        reply.refuse(admission.call, error, standing, charged=settlement.charged)

    async def _refuse(
        self, call: Call, caller: Caller | None, error: RequestError, reply: Reply
    ) -> None:
        standing = None if caller is None else await self._gate.standing(caller)
        self._observer.refused(call, caller, error)
        reply.refuse(call, error, standing)

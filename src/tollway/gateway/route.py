"""Model -> the upstreams that serve it, in the order to try, and what each is asked.

What can be known before a request is there (`_Upstreams`) is made once a model. A `Route` is one
request's way through it: which upstream now, what came of it, and whether another may be tried
under the same hold. That is allowed as long as the client has not been given a byte of an answer,
at most twice, within the model's budget for such tries, and where it can help: an upstream that
was not asked yet, or the same one again where nothing else is left and its trouble may have been
that of a moment.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from tollway.catalogue import Model
from tollway.clock import Clock
from tollway.errors import InvalidRequest, RequestError, Unavailable, UpstreamTimeout
from tollway.gateway.policy import with_defaults
from tollway.gateway.types import Admission
from tollway.ledger.base import Hold, Outcome
from tollway.upstreams.balance import Candidate, by_key, least_loaded
from tollway.upstreams.base import Ask, Upstream
from tollway.upstreams.budget import RetryBudget
from tollway.upstreams.health import verdict
from tollway.upstreams.watched import Watched
from tollway.wire.chat import UserMessage
from tollway.wire.requests import OPTIONAL_FIELDS, ParsedRequest

TRIES_MAX = 3
KEY_BYTES_A_MESSAGE = 4096
BACKOFF_SECONDS = 0.1
BUSY_RETRY_SECONDS = 5.0

_encode = msgspec.json.Encoder().encode


class Router:
    """`watched` are all upstreams by name; `chance` is between 0 and 1 each time."""

    def __init__(
        self, watched: Mapping[str, Watched], clock: Clock, chance: Callable[[], float]
    ) -> None:
        self._watched = watched
        self._monotonic = clock.monotonic
        self._chance = chance
        self._by_model: dict[str, _Upstreams] = {}
        self._former: dict[int, _Upstreams] = {}

    def put(self, watched: Mapping[str, Watched], models: Iterable[Model]) -> None:
        """These are the upstreams and the models from now on. What is the same goes on as it was;
        a request that was admitted by a model that is not any more finds its way as before."""
        before, self._watched = self._by_model, watched
        self._former = {id(upstreams.model): upstreams for upstreams in before.values()}
        self._by_model = {model.id: self._kept(before.get(model.id), model) for model in models}

    def not_ready(self, models: Iterable[Model]) -> list[str]:
        """For each model that no upstream can serve now, why not."""
        return [
            f"model {model.id}: {'; '.join(upstreams.hindrances())}"
            for model in models
            if not (upstreams := self._upstreams_of(model)).may_be_asked()
        ]

    def upstreams(self) -> Iterable[Watched]:
        return self._watched.values()

    def tries_refused(self) -> Iterable[tuple[str, int]]:
        """By model: how often a request was not tried again for want of budget."""
        return ((model, upstreams.budget.refused) for model, upstreams in self._by_model.items())

    def settled(self, outcome: Outcome, hold: Hold) -> None:
        """What an upstream reported decides whether it is asked again: not what was charged of it,
        which is less too where an account could not pay any more."""
        if outcome.source == "upstream" and outcome.upstream is not None:
            watched = self._watched.get(outcome.upstream)
            if watched is not None:  # it may have been taken out meanwhile
                beyond = outcome.cost - hold.amount
                watched.health.reported(beyond if beyond > 0 else 0)

    def route(self, admission: Admission) -> "UpstreamsRoute":
        upstreams = self._upstreams_of(admission.model)
        upstreams.budget.deposit()
        sticky = upstreams.model.sticky
        key = None if sticky is None else key_of(admission, by_prefix=sticky == "prefix")
        parsed = admission.parsed
        return UpstreamsRoute(
            upstreams,
            parsed.fields if upstreams.takes_all_fields else upstreams.fields(parsed),
            parsed.request.stream is True,
            admission.call.request_id,
            admission.cost.output_tokens_max,
            key,
        )

    def count_input_tokens(
        self, model: Model, parsed: ParsedRequest, output_tokens_max: int
    ) -> Awaitable[int | None] | None:
        """By the model's own tokenizer; None where its upstream cannot be asked cheaply. Comes
        before the hold, so a request for a model none of whose upstreams may be asked is refused
        (`Unavailable`) here.

        None for a model with several upstreams: another may count more than the one that was asked.
        """
        upstreams = self._upstreams_of(model)
        if (candidate := upstreams.lone) is None:
            if not upstreams.may_be_asked():
                raise upstreams.refusal()
            return None
        if not (candidate.health.clear or candidate.health.may_be_asked()):
            raise upstreams.refusal()
        if not candidate.upstream.counts_input_tokens:
            return None
        ask = Ask("", candidate.serving.model, upstreams.fields(parsed), output_tokens_max)
        return candidate.upstream.count_input_tokens(ask)

    def _upstreams_of(self, model: Model) -> "_Upstreams":
        known = self._by_model.get(model.id)
        return known if known is not None and known.model is model else self._former_or_new(model)

    def _former_or_new(self, model: Model) -> "_Upstreams":
        """Of a model that is asked for the first time, or was on offer until a moment ago."""
        former = self._former.get(id(model))
        if former is not None:
            return former
        upstreams = self._by_model[model.id] = _Upstreams(
            model, self._watched, self._monotonic, self._chance
        )
        return upstreams

    def _kept(self, upstreams: "_Upstreams | None", model: Model) -> "_Upstreams":
        if upstreams is None or upstreams.model is not model or not upstreams.is_of(self._watched):
            return _Upstreams(model, self._watched, self._monotonic, self._chance)
        return upstreams


class _Upstreams:
    """The upstreams of one model. `lone` is the only one, where there is only one."""

    def __init__(
        self,
        model: Model,
        watched: Mapping[str, Watched],
        monotonic: Callable[[], float],
        chance: Callable[[], float],
    ) -> None:
        self.model = model
        self.monotonic = monotonic
        self.chance = chance
        self.budget = RetryBudget(monotonic)
        self.takes_all_fields = model.supported_parameters is None and model.policy is None
        self.candidates = [
            Candidate(watched[serving.upstream], serving)
            for serving in model.servings
            if serving.upstream in watched
        ]
        self.lone = self.candidates[0] if len(self.candidates) == 1 else None
        priorities = sorted({serving.priority for serving in model.servings})
        self.by_priority = tuple(
            tuple(
                candidate for candidate in self.candidates if candidate.serving.priority == priority
            )
            for priority in priorities
        )

    def is_of(self, watched: Mapping[str, Watched]) -> bool:
        return all(
            watched.get(candidate.watched.name) is candidate.watched
            for candidate in self.candidates
        )

    def fields(self, parsed: ParsedRequest) -> Mapping[str, object]:
        supported, policy = self.model.supported_parameters, self.model.policy
        fields: Mapping[str, object] = parsed.fields
        if supported is not None:
            fields = {
                name: value
                for name, value in fields.items()
                if name not in OPTIONAL_FIELDS or name in supported
            }
        return fields if policy is None else with_defaults(policy, fields)

    def may_be_asked(self) -> bool:
        for candidate in self.candidates:  # noqa: SIM110 (a generator takes 0.7 us more)
            if candidate.watched.may_be_asked():
                return True
        return False

    def hindrances(self) -> list[str]:
        """For the operator: what speaks against each upstream."""
        return [
            f"upstream {candidate.watched.name} is not ready, {candidate.watched.status().why}"
            for candidate in self.candidates
            if not candidate.watched.may_be_asked()
        ]

    def refusal(self) -> Unavailable:
        """Why no upstream takes a request, for the client."""
        asked = [candidate for candidate in self.candidates if candidate.watched.may_be_asked()]
        if asked:
            return _busy(asked)
        waits = [candidate.health.seconds_until_asked() for candidate in self.candidates]
        seconds = min((wait for wait in waits if wait > 0), default=BUSY_RETRY_SECONDS)
        statuses = [candidate.watched.status() for candidate in self.candidates]
        is_busy = any(status.condition == "resting" for status in statuses)
        code = "overloaded" if is_busy else "unavailable"
        if self.lone is not None:
            return Unavailable(
                f"The model's server is not asked for {max(1.0, seconds):.0f} s, because "
                f"{statuses[0].why}. Try again then, or use another model.",
                code=code,
                retry_after_seconds=seconds,
            )
        return Unavailable(
            f"None of the model's {len(self.candidates)} servers can be asked now. Try again in "
            f"{max(1.0, seconds):.0f} s, or use another model.",
            code=code,
            retry_after_seconds=seconds,
        )


@dataclass(slots=True, eq=False)
class UpstreamsRoute:
    """Implements `Route`. Between `enter` (or `wait`) and one of `served`, `failed` and `abandoned`
    it has a place at an upstream."""

    _upstreams: _Upstreams
    _fields: Mapping[str, object]
    _streamed: bool
    _request_id: str
    _output_tokens_max: int
    _key: bytes | None = None
    _tried: tuple[Candidate, ...] = ()
    _tries: int = 0
    _candidate: Candidate = field(init=False)
    _asked_at: float = field(init=False)
    _began_at: float = field(init=False)
    _answered: bool = field(init=False)
    _probe: bool = field(init=False)
    ask: Ask = field(init=False)

    def enter(self) -> Upstream | None:
        candidate = self._upstreams.lone
        if (
            candidate is None
            or not candidate.health.clear
            or candidate.places.in_flight >= candidate.places.limit
        ):
            candidate = self._choose()
            if candidate is None:
                return None
        candidate.places.in_flight += 1
        return self._begin(candidate)

    async def wait(self) -> Upstream:
        """For a place, where none is free; one priority after the other. Raises `Unavailable`."""
        for group in self._upstreams.by_priority:
            candidate = self._best_of(group)
            if candidate is not None:
                candidate.places.in_flight += 1
                return self._begin(candidate)
            candidate = await self._turn(group)
            if candidate is not None:
                return self._begin(candidate)
        for group in self._upstreams.by_priority:  # better at a risk than not at all
            candidate = least_loaded(group, self._tried, streamed=self._streamed)
            if candidate is not None:
                candidate.places.in_flight += 1
                return self._begin(candidate)
        raise self._upstreams.refusal()

    def answered(self) -> None:
        if self._answered:
            return
        self._answered = True
        candidate = self._candidate
        seconds = self._upstreams.monotonic() - self._asked_at
        candidate.watched.answered_after(seconds, self._streamed)
        if self._probe:
            self._probe = False
            candidate.health.answered()

    def served(self) -> None:
        candidate = self._candidate
        if not self._answered:
            self.answered()
        candidate.places.leave()
        candidate.health.served()
        if candidate.flakiness:
            candidate.served()

    def failed(self, error: RequestError) -> None:
        candidate = self._candidate
        candidate.health.failed(error, probe=self._probe)
        if not isinstance(error, InvalidRequest):
            candidate.failed(self._upstreams.monotonic())
        if not candidate.health.clear:
            candidate.places.turn_away()
        candidate.places.leave()

    def abandoned(self) -> None:
        self._candidate.places.leave()
        self._candidate.health.abandoned(probe=self._probe)

    async def may_try_again(self, error: RequestError) -> bool:
        self._tries += 1
        if self._tries == TRIES_MAX or isinstance(error, InvalidRequest):
            return False
        candidate, upstreams = self._candidate, self._upstreams
        if upstreams.monotonic() - self._began_at >= candidate.deadlines.total_seconds:
            return False
        others = (*self._tried, candidate)
        is_other_left = any(
            other not in others and other.watched.may_be_asked() for other in upstreams.candidates
        )
        if not is_other_left and not (_is_of_a_moment(error) and candidate.health.may_be_asked()):
            return False
        # Where nothing was sent, no server has had any work with it.
        if error.was_sent and not upstreams.budget.withdraw():
            return False
        if is_other_left:
            self._tried = others
        else:
            backoff_seconds = BACKOFF_SECONDS * 2 ** (self._tries - 1)
            await asyncio.sleep(backoff_seconds * (0.5 + upstreams.chance()))
        return True

    def let_go(self) -> None:
        self._fields = self.ask.fields = {}

    def _choose(self) -> Candidate | None:
        """One of a later priority only where none of an earlier one is worth waiting for."""
        for group in self._upstreams.by_priority:
            candidate = self._best_of(group)
            if candidate is not None or any(
                self._is_worth_waiting_for(other) for other in self._without_risk(group)
            ):
                return candidate
        return None

    def _without_risk(self, group: Sequence[Candidate]) -> Sequence[Candidate]:
        """A request is not risked on an upstream that fails now and then, where it could not be
        tried again and another is steady, though it may have to wait for that one."""
        for candidate in group:
            if candidate.flakiness:
                break
        else:
            return group
        now = self._upstreams.monotonic()
        for candidate in group:
            candidate.forgive(now)
        at_risk = 1 + sum(candidate.places.in_flight for candidate in group if candidate.flakiness)
        if self._upstreams.budget.remaining() >= at_risk:
            return group
        steady = [
            candidate
            for candidate in group
            if not candidate.flakiness
            and candidate not in self._tried
            and candidate.watched.may_be_asked()
        ]
        return steady or group

    def _best_of(self, group: Sequence[Candidate]) -> Candidate | None:
        group = self._without_risk(group)
        if self._key is not None and (kept := by_key(group, self._tried, self._key)) is not None:
            return kept
        return least_loaded(group, self._tried, streamed=self._streamed)

    def _is_worth_waiting_for(self, candidate: Candidate) -> bool:
        return (
            candidate.places.queue_length > candidate.places.waiting
            and candidate not in self._tried
            and candidate.watched.may_be_asked()
        )

    async def _turn(self, group: Sequence[Candidate]) -> Candidate | None:
        """The first place that becomes free in this group, in time; it is taken then."""
        loop = asyncio.get_running_loop()
        until = 0.0
        while True:
            turn = loop.create_future()
            queued = [
                candidate
                for candidate in self._without_risk(group)
                if self._is_worth_waiting_for(candidate) and candidate.places.queue(turn)
            ]
            if not queued:
                return None
            longest = max(candidate.places.queue_seconds for candidate in queued)
            until = until or loop.time() + longest
            try:
                async with asyncio.timeout_at(until):
                    places = await turn
            except BaseException as error:
                if turn.done() and not turn.cancelled() and turn.result() is not None:
                    turn.result().leave()  # given in the very moment of giving up
                if isinstance(error, TimeoutError):
                    return None
                raise
            finally:
                for candidate in queued:
                    candidate.places.unqueue(turn)
            if places is None:
                continue
            candidate = next(candidate for candidate in queued if candidate.places is places)
            if candidate.watched.may_be_asked():
                return candidate
            places.leave()

    def _begin(self, candidate: Candidate) -> Upstream:
        self._candidate = candidate
        self._answered = False
        self._asked_at = now = self._upstreams.monotonic()
        deadlines = candidate.deadlines
        if self._tries:
            # The last word is the total's, over all tries.
            left = max(0.0, deadlines.total_seconds - (now - self._began_at))
            deadlines = msgspec.structs.replace(deadlines, total_seconds=left)
        else:
            self._began_at = now
        self._probe = not candidate.health.clear and candidate.health.begin_probe()
        self.ask = Ask(
            self._request_id,
            candidate.serving.model,
            self._fields,
            self._output_tokens_max,
            deadlines,
        )
        return candidate.upstream


def key_of(admission: Admission, *, by_prefix: bool) -> bytes | None:
    """What requests that belong together have in common, within an account: the client's own word
    for it, else its conversation up to the first thing that the user said. None: any upstream will
    do."""
    call, request = admission.call, admission.parsed.request
    account = admission.caller.account.id.encode()
    if call.session is not None:
        return account + b" session " + call.session
    if not by_prefix:
        return None
    if request.prompt_cache_key is not None:
        return account + b" key " + request.prompt_cache_key.encode()
    beginning = bytearray(account)
    for message in request.messages:
        beginning += _encode(message)[:KEY_BYTES_A_MESSAGE]
        if isinstance(message, UserMessage):
            break
    return bytes(beginning)


def _is_of_a_moment(error: RequestError) -> bool:
    """The same upstream may well answer in a moment: its address may stand for many servers, of
    which one was just replaced. One that took its time, or said for how long, will not."""
    if error.upstream_rest_seconds is not None or isinstance(error, UpstreamTimeout):
        return False
    return error.upstream_status in (None, 502, 503) and verdict(error) != "nothing"


def _busy(candidates: Iterable[Candidate]) -> Unavailable:
    waiting = sum(candidate.places.waiting for candidate in candidates)
    return Unavailable(
        "The model's servers run as many requests as they may, and "
        f"{waiting} wait for a place. Try again in {BUSY_RETRY_SECONDS:g} s.",
        code="overloaded",
        retry_after_seconds=BUSY_RETRY_SECONDS,
    )

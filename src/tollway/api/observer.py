"""Counts every request into the metrics and gives it its line in the access log.

A metered request only leaves what is to be told of it. It is told together with a few others, at
most `UNTOLD_MAX`, and before anybody looks at the metrics or lines are written: a loop over several
(`tell`) is warm and costs a fraction of what telling each by itself did.
"""

import datetime
from bisect import bisect_left

from tollway.api.access_log import AccessLine, AccessLog
from tollway.api.replies import status_of
from tollway.clock import Clock
from tollway.errors import AuthenticationFailed, RateLimited, RequestError
from tollway.gateway.types import Admission, Call, Caller, Reply
from tollway.ledger.base import Outcome, Settlement
from tollway.metrics.counters import Metrics, ModelCounts

UNTOLD_MAX = 16
"""What is not told yet keeps its request in memory, and in the processor's cache: with 256 of them
everything else was pushed out of it."""
INPUT_TOKENS_KEPT_MAX = 4 * 1024
"""A request that may have more is large, and is told at once."""

CLIENT_LEFT = 499
"""Stands for the status of a reply whose client left before its head was sent, as in nginx."""

_from_timestamp = datetime.datetime.fromtimestamp
_UTC = datetime.UTC
_NO_COUNTS = ModelCounts()


class RequestObserver:
    """Implements the pipeline's `Observer`; `answered` is for every other route."""

    def __init__(self, metrics: Metrics, access_log: AccessLog, clock: Clock) -> None:
        self._metrics = metrics
        self._access_log = access_log
        self._monotonic = clock.monotonic
        self._untold: list[_Settled] = []
        metrics.before_reading.append(self.tell)
        access_log.before_writing.append(self.tell)

    def settled(
        self,
        admission: Admission,
        outcome: Outcome,
        settlement: Settlement,
        error: RequestError | None,
        reply: Reply,
    ) -> None:
        kind = "chat_stream" if admission.parsed.request.stream is True else "chat"
        if reply.begun:
            status = 200
        elif reply.gone:
            status = CLIENT_LEFT
        else:
            status = 200 if error is None else status_of(error)
        untold = self._untold
        untold.append((kind, status, admission, outcome, settlement, error))
        if (
            len(untold) == UNTOLD_MAX
            or admission.cost.input_tokens_max > INPUT_TOKENS_KEPT_MAX
            or admission.parsed.images
        ):
            self.tell()

    def tell(self) -> None:
        """One loop and no calls for each: as six functions it took a fifth more."""
        untold, self._untold = self._untold, []
        metrics = self._metrics
        requests, upstreams = metrics.requests, metrics.upstream_attempts
        is_logged = self._access_log.enabled
        lines: list[AccessLine] = []
        model, counts = "", _NO_COUNTS
        # Of charges in a row that are one account's, in one second.
        account_id, second, spent = "", 0, 0
        for kind, status, admission, outcome, settlement, error in untold:
            call, caller = admission.call, admission.caller
            account, charged = caller.account, settlement.charged
            seconds, first = outcome.total_seconds, outcome.first_token_seconds
            attempts = outcome.attempts
            if outcome.model != model:
                model = outcome.model
                counts = metrics.of(model)
            key = (kind, model, status)
            requests[key] = requests.get(key, 0) + 1
            counts.ended[outcome.status] += 1
            if charged:
                counts.credits += charged
                moment = int(call.began + seconds)
                if moment != second or account.id != account_id:
                    if spent:
                        metrics.velocity.charged(account_id, spent, second)
                    account_id, second, spent = account.id, moment, 0
                spent += charged
            histogram = counts.duration
            histogram.counts[bisect_left(histogram.bounds, seconds)] += 1
            histogram.sum += seconds
            if first is not None:
                histogram = counts.first_token
                histogram.counts[bisect_left(histogram.bounds, first)] += 1
                histogram.sum += first
            if outcome.input_tokens or outcome.output_tokens:
                counts.input_tokens += outcome.input_tokens
                counts.output_tokens += outcome.output_tokens
                if outcome.source != "upstream":
                    counts.counted += 1
            if settlement.shortfall:
                counts.shortfalls += 1
                counts.shortfall_credits += settlement.shortfall
            for attempt in attempts:
                if attempt.error is None:
                    upstreams[attempt.upstream] = upstreams.get(attempt.upstream, 0) + 1
                else:
                    metrics.attempted(attempt.upstream, attempt.status, attempt.error)
            if len(attempts) > 1:
                counts.tries_again += len(attempts) - 1
            if is_logged:
                lines.append(
                    AccessLine(
                        _from_timestamp(call.now, _UTC),
                        call.request_id,
                        kind,
                        status,
                        call.address,
                        int(seconds * 1_000_000) / 1000,
                        account.id,
                        caller.token.id,
                        model,
                        outcome.status,
                        None if error is None else error.code,
                        outcome.input_tokens,
                        outcome.output_tokens,
                        outcome.source,
                        charged,
                        settlement.shortfall,
                        None if first is None else int(first * 1_000_000) / 1000,
                        outcome.upstream,
                        len(attempts),
                        call.client_request_id,
                    )
                )
        if spent:
            metrics.velocity.charged(account_id, spent, second)
        if lines:
            self._access_log.extend(lines)

    def refused(self, call: Call, caller: Caller | None, error: RequestError) -> None:
        self.answered("chat", status_of(error), call, caller, error)

    def answered(
        self,
        kind: str,
        status: int,
        call: Call,
        caller: Caller | None,
        error: RequestError | None,
    ) -> None:
        """What held no credit. `call` may be without its body."""
        self._metrics.request(kind, "", status)
        if error is not None:
            self._count_refusal(caller, error)
        if not self._access_log.enabled:
            return
        self._access_log.append(
            AccessLine(
                _from_timestamp(call.now, _UTC),
                call.request_id,
                kind,
                status,
                call.address,
                _milliseconds(self._monotonic() - call.began),
                None if caller is None else caller.account.id,
                None if caller is None else caller.token.id,
                error=None if error is None else error.code,
                client_request_id=call.client_request_id,
            )
        )

    def _count_refusal(self, caller: Caller | None, error: RequestError) -> None:
        metrics = self._metrics
        metrics.refused(error.code)
        if caller is None and isinstance(error, AuthenticationFailed | RateLimited):
            metrics.authentication_failures += 1
        if isinstance(error, RateLimited):
            metrics.rate_refusals[error.why.limit] += 1


_Settled = tuple[str, int, Admission, Outcome, Settlement, RequestError | None]


def _milliseconds(seconds: float) -> float:
    return int(seconds * 1_000_000) / 1000

"""What a request used -> what it costs. The rules are the table "Who pays" of
docs/explanation/money.md.

A whole reply is paid for when it is delivered, by the upstream's usage if that can be true, else as
counted. A stream that broke off, on either side, is paid for as far as the client received it, and
not at all if nothing came.
"""

from collections.abc import Iterable

from tollway.gateway.types import Admission, Meter
from tollway.ledger.base import Checkpoint, Hold, Outcome, Settlement
from tollway.pricing import BYTES_PER_TOKEN, NOTHING_USED, Usage, charge, tokens_of_text


def outcome_of(admission: Admission, meter: Meter, monotonic: float) -> Outcome:
    usage = usage_of(admission, meter)
    call = admission.call
    first = meter.first_output_at
    # By position: names cost half as much again.
    return Outcome(
        meter.status,
        admission.model.id,
        usage.input_tokens,
        usage.output_tokens,
        usage.source,
        charge(
            admission.model.price,
            usage.input_tokens,
            usage.output_tokens,
            usage.cached_tokens,
            usage.reasoning_tokens,
        ),
        meter.attempts,
        meter.upstream,
        meter.upstream_id,
        call.client_request_id,
        None if first is None else first - call.began,
        monotonic - call.began,
        usage.cached_tokens,
        usage.reasoning_tokens,
    )


def settlement_of(hold: Hold, outcome: Outcome) -> Settlement:
    """What the ledger will make of it, for who cannot wait; but for a charge that comes late, and
    for `available`, which it alone knows."""
    charged = min(outcome.cost, hold.amount)
    return Settlement(charged, outcome.cost - charged, hold.available)


def usage_of(admission: Admission, meter: Meter) -> Usage:
    received = meter.output_pieces > 0 or meter.text_bytes > 0
    completed = meter.status == "completed"
    if not received and not (completed and meter.finished):
        return NOTHING_USED
    if not completed and not admission.parsed.wants_stream:
        return NOTHING_USED
    report = meter.report
    if (
        report is not None
        # No prompt is empty, and output that was received was generated.
        and report.input_tokens
        and (report.output_tokens or not received)
        # Of a reply that broke off, a report from before its last output says too little.
        and (completed or meter.reported_pieces == meter.output_pieces)
    ):
        return Usage(
            report.input_tokens,
            report.output_tokens,
            "upstream",
            report.cached_tokens,
            report.reasoning_tokens,
        )
    return Usage(
        admission.cost.input_tokens_assumed,
        meter.output_pieces or tokens_of_text(meter.text_bytes),
        "counted",
        0,
        _reasoning_tokens(meter),
    )


def _reasoning_tokens(meter: Meter) -> int:
    """Never more than the output's, which is rounded up."""
    return meter.reasoning_pieces or meter.reasoning_bytes // BYTES_PER_TOKEN


def checkpoints_of(
    running: Iterable[tuple[Admission, Meter]], now: float, older_than_seconds: float
) -> list[Checkpoint]:
    """What each stream has delivered so far, for those old enough to be worth a row."""
    checkpoints: list[Checkpoint] = []
    for admission, meter in running:
        if not admission.parsed.wants_stream or now - admission.call.now < older_than_seconds:
            continue
        usage = usage_of(admission, meter)
        if usage is NOTHING_USED:
            continue
        checkpoints.append(
            Checkpoint(
                admission.hold,
                admission.model.id,
                meter.upstream,
                usage.input_tokens,
                usage.output_tokens,
                admission.call.client_request_id,
                now,
                usage.cached_tokens,
                usage.reasoning_tokens,
            )
        )
    return checkpoints

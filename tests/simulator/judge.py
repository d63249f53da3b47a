"""Who should have paid what: recomputed for each request from what the upstream truly sent and what
was truly written to the client, by the table "Who pays" and not by the program's own code."""

import json
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, TypeGuard, cast

from msgspec import Struct
from tests.simulator.client import Response, Talk, key_of, responses
from tests.simulator.upstream import Served

TOKENS_BELIEVED_MAX = 2**32
CANCELLED_WITHIN_SECONDS = 1.0
# A stream of up to 2 s may not have had its first checkpoint (it is written once the stream is
# older than a second, at the next tick of one), and the slowest write of a schedule takes 0.4 s.
LOST_SECONDS_MAX = 2.5


class Row(Struct, frozen=True):
    """A hold as it ended, with its usage and its pinned price."""

    request_id: str
    amount: int
    charged: int
    shortfall: int
    state: str
    status: str
    source: str
    input_tokens: int
    output_tokens: int
    input_price: int
    output_price: int
    remaining: int

    def cost(self, input_tokens: int, output_tokens: int) -> int:
        exact = input_tokens * self.input_price + output_tokens * self.output_price
        whole, rest = divmod(exact, 1_000_000)
        return whole + (rest > 0)


class Life(Struct):
    """How one life of the process ended. `calm`: its disk was sound and its wall clock steady."""

    killed_at: float | None
    calm: bool


class Figures(Struct):
    """What a release reports."""

    schedules: int = 0
    requests: int = 0
    settled: int = 0
    charges: int = 0
    kills: int = 0
    recovered: int = 0
    replayed: int = 0
    lost: int = 0
    double: int = 0
    overspent: int = 0
    shortfall: int = 0
    counted: int = 0
    interrupted: int = 0
    operator_lost_tokens_max: int = 0
    operator_lost_seconds_max: float = 0.0

    def add(self, other: "Figures") -> None:
        for name in self.__struct_fields__:
            mine, theirs = getattr(self, name), getattr(other, name)
            setattr(self, name, max(mine, theirs) if name.endswith("_max") else mine + theirs)


def rows_by_tag(connection: sqlite3.Connection) -> dict[str, list[Row]]:
    rows: dict[str, list[Row]] = {}
    for tag, *values in connection.execute(
        "SELECT u.client_request_id, h.id, h.amount, h.charged + h.late, h.shortfall, h.state,"
        " u.status, u.source, u.prompt_tokens, u.completion_tokens, p.prompt_rate,"
        " p.completion_rate, u.remaining FROM holds h JOIN usage u ON u.request_id = h.id"
        " JOIN prices p ON p.id = h.price_id"
    ):
        rows.setdefault(tag, []).append(Row(*values))
    return rows


class Judge:
    """`complaints` is empty where every promise was kept."""

    def __init__(self, rows: dict[str, list[Row]], served: Iterable[Served]) -> None:
        self.complaints: list[str] = []
        self.figures = Figures(schedules=1)
        self._rows = rows
        self._served: dict[str, list[Served]] = {}
        for one in served:
            self._served.setdefault(one.request_id, []).append(one)

    def judge(self, talks: Sequence[Talk], lives: Sequence[Life], *, clock_stepped: bool) -> None:
        for talk in talks:
            replies = responses(talk.gateways.written)
            for number, tag in enumerate(talk.tags):
                reply = replies[number] if number < len(replies) else None
                self._judge_request(tag, number, reply, talk, lives[talk.life])
        if not clock_stepped:  # a key lives for a day by the wall clock
            self._judge_keys(talks)
        self.figures.lost = sum("lost:" in complaint for complaint in self.complaints)
        self.figures.double = sum("double:" in complaint for complaint in self.complaints)
        self.figures.overspent = sum("overspent:" in complaint for complaint in self.complaints)

    def _judge_request(
        self, tag: str, number: int, reply: Response | None, talk: Talk, life: Life
    ) -> None:
        self.figures.requests += 1
        rows = self._rows.get(tag, [])
        if len(rows) > 1:
            self._complain(tag, f"double: {len(rows)} holds")
        if not rows:
            self._judge_unsettled(tag, number, reply, talk, life)
            return
        row = rows[0]
        self.figures.settled += 1
        self.figures.charges += row.charged > 0
        self.figures.shortfall += row.shortfall
        self.figures.counted += row.source == "counted" and row.charged > 0
        self.figures.interrupted += row.status == "interrupted"
        served = self._served.get(row.request_id, [])
        self._judge_bounds(tag, row, reply, served, talk)
        if row.source == "checkpoint":
            self._judge_recovered(tag, number, row, reply, talk, life)
            return
        self._judge_charge(tag, row, reply, served, talk)
        self._judge_words(tag, row, reply, talk, life)
        if life.killed_at is None:
            self._judge_cancelling(tag, row, served, talk)

    def _judge_keys(self, talks: Sequence[Talk]) -> None:
        """However often it is tried, a request with an Idempotency-Key is paid for once."""
        paid: dict[str, list[str]] = {}
        for tag in (tag for talk in talks if talk.plan.keyed for tag in talk.tags):
            for row in self._rows.get(tag, []):
                if row.charged > 0 or row.status == "completed":
                    paid.setdefault(key_of(tag), []).append(tag)
        for key, tags in paid.items():
            if len(tags) > 1:
                self._complain(key, f"double: its tries {tags} were all paid for")

    def _judge_replay(self, tag: str, reply: Response) -> None:
        id_, told = reply.headers.get("x-request-id"), reply.headers.get("x-credits-consumed")
        rows = [row for of_tag in self._rows.values() for row in of_tag if row.request_id == id_]
        if [str(row.charged) for row in rows] != [told]:
            self._complain(tag, f"wrong: was told {told} of an earlier try, which is {rows}")
        self.figures.replayed += 1

    def _complain(self, tag: str, complaint: str) -> None:
        self.complaints.append(f"{tag}: {complaint}")

    # --- without a row ----------------------------------------------------------------------------

    def _judge_unsettled(
        self, tag: str, number: int, reply: Response | None, talk: Talk, life: Life
    ) -> None:
        if reply is None:
            return
        if "idempotent-replayed" in reply.headers:
            self._judge_replay(tag, reply)
            return
        if reply.status == 200 and (reply.done or (reply.complete and not talk.plan.streams)):
            self._complain(tag, "lost: the client saw it finished, and nothing was charged")
        elif reply.status == 200 and life.killed_at is None:
            self._complain(tag, "lost: it was begun, and never settled")
        elif reply.status == 200:
            self._note_operators_loss(tag, number, reply, 0, talk, life)
        elif reply.complete and reply.headers.get("x-credits-consumed") != "0":
            self._complain(tag, f"refused with {reply.headers.get('x-credits-consumed')} consumed")

    def _note_operators_loss(
        self, tag: str, number: int, reply: Response, charged_for: int, talk: Talk, life: Life
    ) -> None:
        assert life.killed_at is not None
        if not life.calm:
            return
        self.figures.operator_lost_tokens_max = max(
            self.figures.operator_lost_tokens_max, reply.pieces - charged_for
        )
        told = responses(talk.written_by(life.killed_at - LOST_SECONDS_MAX))
        before = told[number].pieces if number < len(told) else 0
        if before > charged_for:
            self._complain(
                tag,
                f"lost: {before} tokens were delivered {LOST_SECONDS_MAX} s before the kill, "
                f"charged for {charged_for}",
            )
        for at, length in talk.gateways.written_at:
            so_far = responses(talk.gateways.written[:length])
            if number < len(so_far) and so_far[number].pieces > charged_for:
                self.figures.operator_lost_seconds_max = max(
                    self.figures.operator_lost_seconds_max, life.killed_at - at
                )
                break

    # --- with one ---------------------------------------------------------------------------------

    def _judge_bounds(
        self, tag: str, row: Row, reply: Response | None, served: Sequence[Served], talk: Talk
    ) -> None:
        plan = talk.plan
        if not 0 <= row.charged <= row.amount:
            self._complain(tag, f"overspent: charged {row.charged} of a hold of {row.amount}")
        if plan.credits_max is not None and row.charged > plan.credits_max:
            self._complain(tag, f"overspent: charged {row.charged}, X-Credits-Max was less")
        if row.charged + row.shortfall != row.cost(row.input_tokens, row.output_tokens):
            self._complain(tag, f"mispriced: {row}")
        pieces = 0 if reply is None or not plan.streams else reply.pieces
        started = sum(one.started_tokens for one in served)
        if pieces > started:
            self._complain(tag, f"{pieces} tokens written, the upstream sent {started}")
        honest = plan.directives.get("usage", "truthful") in ("truthful", "none", "running")
        # A whole reply that is counted has no deltas to count, only its bytes.
        exact = plan.streams or row.source != "counted"
        if honest and exact and row.output_tokens > started:
            self._complain(tag, f"overspent: {row.output_tokens} tokens charged, {started} sent")
        bound = plan.text_bytes + 16 + 256
        for one in served:
            cap = one.asked.output_tokens_max
            if cap is None or row.cost(bound, cap * plan.choices) > row.amount:
                self._complain(tag, f"overspent: a cap of {cap}, a hold of {row.amount}")
            elif pieces > cap * plan.choices:
                self._complain(tag, f"overspent: {pieces} tokens delivered, the cap was {cap}")
        if len(served) > 1 and any(one.transport.delivered for one in served[:-1]):
            first = served[0]
            if any(mark.start < first.transport.delivered for mark in first.marks):
                self._complain(tag, "asked twice, and the first time was answered")

    def _judge_recovered(
        self, tag: str, number: int, row: Row, reply: Response | None, talk: Talk, life: Life
    ) -> None:
        self.figures.recovered += 1
        if life.killed_at is None:
            self._complain(tag, "double: settled by a recovery although its process ended well")
            return
        if reply is None or (reply.pieces == 0 and row.charged > 0):
            self._complain(tag, "overspent: recovered a charge for nothing delivered")
            return
        if reply.done:
            self._complain(tag, "lost: seen finished, and charged by its checkpoint")
        honest = talk.plan.directives.get("usage", "truthful") in ("truthful", "none")
        if honest and row.output_tokens > reply.pieces:
            self._complain(tag, f"overspent: {row.output_tokens} charged of {reply.pieces} written")
        if honest:
            self._note_operators_loss(tag, number, reply, row.output_tokens, talk, life)

    def _judge_charge(
        self, tag: str, row: Row, reply: Response | None, served: Sequence[Served], talk: Talk
    ) -> None:
        input_tokens, output_tokens, source = self._due(row, reply, served, talk)
        cost = row.cost(input_tokens, output_tokens)
        due = (input_tokens, output_tokens, min(cost, row.amount), max(0, cost - row.amount))
        found = (row.input_tokens, row.output_tokens, row.charged, row.shortfall)
        if due != found or (source is not None and source != row.source):
            self._complain(
                tag,
                f"{'overspent' if found[2] > due[2] else 'lost' if found[2] < due[2] else 'wrong'}:"
                f" due {due} {source}, found {found} {row.source} ({row.status})",
            )

    def _due(
        self, row: Row, reply: Response | None, served: Sequence[Served], talk: Talk
    ) -> tuple[int, int, str | None]:
        if not served or (row.status == "failed" and not talk.plan.streams):
            return 0, 0, None
        if talk.plan.streams:
            return self._due_for_stream(row, reply, served[-1], talk)
        return self._due_for_whole(row, served[-1], talk)

    def _due_for_whole(self, row: Row, served: Served, talk: Talk) -> tuple[int, int, str | None]:
        if row.status != "completed":
            return 0, 0, None
        (mark,) = served.whole
        told = _readable(mark.usage)
        spoke = mark.tokens > 0
        if not spoke and talk.plan.directives.get("finish") is False:
            return 0, 0, None
        if told is not None and told[0] > 0 and (told[1] > 0 or not spoke):
            return *told, "upstream"
        text_bytes = talk.plan.choices * _content_bytes(served, mark.end - mark.start)
        return -(-talk.plan.text_bytes // 4), -(-text_bytes // 4), "counted"

    def _due_for_stream(
        self, row: Row, reply: Response | None, served: Served, talk: Talk
    ) -> tuple[int, int, str | None]:
        pieces = 0 if reply is None else reply.pieces
        completed = row.status == "completed"
        if not pieces and not completed:
            return 0, 0, None
        cap = (served.asked.output_tokens_max or 0) * talk.plan.choices
        told, told_at, seen = None, 0, 0
        for mark in served.whole:
            if seen + mark.tokens > cap:
                break  # cut there
            seen += mark.tokens
            report = _readable(mark.usage)
            if report is not None:
                told, told_at = report, seen
        believed = (
            told is not None and told[0] > 0 and (told[1] > 0 or not pieces) and told_at >= pieces
        )
        if told is not None and believed:
            return *told, "upstream"
        return -(-talk.plan.text_bytes // 4), pieces, "counted"

    def _judge_words(
        self, tag: str, row: Row, reply: Response | None, talk: Talk, life: Life
    ) -> None:
        """What the client was told, where it was told anything."""
        if reply is None:
            # The charge is durable before the client sees the end, so a kill or the client's
            # leaving can come between the two.
            durable = row.status == "completed" and (life.killed_at or talk.left_at) is not None
            if row.charged and not durable:
                self._complain(tag, "overspent: charged, and nothing was written to the client")
            return
        told = {reply.headers.get("x-credits-consumed"), reply.trailers.get("x-credits-consumed")}
        left = {reply.headers.get("x-credits-remaining")} if not reply.events else set[Any]()
        left.add(reply.trailers.get("x-credits-remaining"))
        for event in reply.events:
            if event.startswith(b": credits "):
                words = event.decode().replace("=", " ").split()
                told.add(words[3])
                left.add(words[5])
            elif b'"credits_consumed"' in event:
                usage = json.loads(event.removeprefix(b"data: "))["usage"]
                told.add(str(usage["credits_consumed"]))
                left.add(str(usage["credits_remaining"]))
        if reply.headers.get("content-type") == "application/json" and reply.complete:
            usage = json.loads(reply.body).get("usage")
            told |= {str(usage["credits_consumed"])} if usage else set()
        if told - {None, str(row.charged)}:
            self._complain(tag, f"told {told}, charged {row.charged}")
        if row.status == "completed" and left - {None, str(row.remaining)}:
            self._complain(tag, f"told {left} remain, the receipt says {row.remaining}")
        reserved = reply.headers.get("x-credits-reserved")
        if reserved is not None and reserved != str(row.amount):
            self._complain(tag, f"told that {reserved} were reserved, held {row.amount}")
        finished = reply.done or (reply.complete and reply.status == 200 and not reply.events)
        if finished and row.status != "completed":
            self._complain(tag, f"finished for its client, {row.status} in its receipt")
        if b'"error":' in reply.body and row.status == "completed":
            self._complain(tag, "completed in its receipt, an error for its client")

    def _judge_cancelling(self, tag: str, row: Row, served: Sequence[Served], talk: Talk) -> None:
        if talk.left_at is None or row.status != "interrupted" or not served:
            return
        # One that had answered to the end, if only with an error, was not there to be cancelled.
        lost_at = served[-1].answered_at or served[-1].transport.lost_at
        if lost_at is None or lost_at - talk.left_at > CANCELLED_WITHIN_SECONDS:
            self._complain(tag, f"its client left at {talk.left_at}, its upstream at {lost_at}")


def _readable(usage: object) -> tuple[int, int] | None:
    if not isinstance(usage, dict):
        return None
    told = cast("dict[str, Any]", usage)
    input_tokens, output_tokens = told.get("prompt_tokens"), told.get("completion_tokens")
    if _is_count(input_tokens) and _is_count(output_tokens):
        return input_tokens, output_tokens
    return None


def _is_count(number: object) -> TypeGuard[int]:
    return type(number) is int and 0 <= number <= TOKENS_BELIEVED_MAX


def _content_bytes(served: Served, length: int) -> int:
    """Of one choice of the whole reply that was sent last."""
    written = bytes(served.transport.written)
    (mark,) = served.marks
    body = json.loads(written[mark.start : mark.start + length])
    return len(body["choices"][0]["message"]["content"].encode())

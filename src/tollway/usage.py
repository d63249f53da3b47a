"""What was used in a span of time, in sums: by account, model, token or day.

Request ids begin with their time, so a span is a range of the tables' own order, and no index is
kept for it. It is read in pieces, so that a report on millions of requests does not keep others
from the database for long; from the first request within it to the last, so that a span of
centuries is no more pieces than there is to read.
"""

from collections.abc import Iterator
from typing import Literal

from msgspec import Struct

from tollway.clock import first_id_since, moment_of
from tollway.database.base import Database

By = Literal["account", "model", "token", "day"]

DAY_SECONDS = 86_400
PIECE_SECONDS = 3 * 3600


class Sums(Struct):
    """Of all requests with one `key`: an account's id, a model's, a token's, or the number of a day
    since 1970 (UTC). Cached tokens are among the input's, reasoning tokens among the output's;
    `credits` is what was charged, whatever was refunded later."""

    key: str | int
    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    credits: int = 0

    def add(self, *more: int) -> None:
        requests, input_tokens, output_tokens, cached_tokens, reasoning_tokens, credits = more
        self.requests += requests
        self.input_tokens += input_tokens
        self.output_tokens += output_tokens
        self.cached_tokens += cached_tokens
        self.reasoning_tokens += reasoning_tokens
        self.credits += credits


async def sums(
    database: Database, by: By, since: float, until: float, account_id: str | None = None
) -> list[Sums]:
    """Of the requests that came from `since` on and before `until`, in seconds since 1970, and have
    ended: the dearest first, days in their order. Of all accounts where none is named."""
    found: dict[str | int, Sums] = {}
    for begin, end in _pieces(*await _within(database, since, until)):
        parameters = [first_id_since("req", begin), first_id_since("req", end)]
        of_account = ""
        if account_id is not None:
            parameters.append(account_id)
            of_account = "AND usage.account_id = ?"
        sql = _SUMS.format(key=_KEYS[by], of_account=of_account)
        for key, *more in await database.fetch(sql, parameters):
            found.setdefault(key, Sums(key)).add(*more)
    if by == "day":
        return sorted(found.values(), key=lambda one: one.key)
    return sorted(found.values(), key=lambda one: (-one.credits, one.key))


async def _within(database: Database, since: float, until: float) -> tuple[float, float]:
    """The same span, without what is before the first request in it and after the last."""
    span = [first_id_since("req", since), first_id_since("req", until)]
    ((first, last),) = await database.fetch(_ENDS, span * 2)
    if first is None:
        return since, since
    return max(since, moment_of(first) - 1), min(until, moment_of(last) + 1)


def _pieces(since: float, until: float) -> Iterator[tuple[float, float]]:
    while since < until:
        end = min(since + PIECE_SECONDS, until)
        yield since, end
        since = end


_KEYS: dict[By, str] = {
    "account": "usage.account_id",
    "model": "usage.model",
    "token": "usage.token_id",
    "day": f"usage.created_at / {DAY_SECONDS * 1000}",
}

_ENDS = """
SELECT (SELECT MIN(request_id) FROM usage WHERE request_id >= ? AND request_id < ?),
       (SELECT MAX(request_id) FROM usage WHERE request_id >= ? AND request_id < ?)"""

_SUMS = """
SELECT {key}, COUNT(*), CAST(SUM(usage.prompt_tokens) AS BIGINT),
       CAST(SUM(usage.completion_tokens) AS BIGINT), CAST(SUM(usage.cached_tokens) AS BIGINT),
       CAST(SUM(usage.reasoning_tokens) AS BIGINT), CAST(SUM(holds.charged + holds.late) AS BIGINT)
  FROM usage JOIN holds ON holds.id = usage.request_id
 WHERE usage.request_id >= ? AND usage.request_id < ? {of_account}
 GROUP BY 1"""

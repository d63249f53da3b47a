"""The other workers on this one's port: a scrape reaches any of them, and shows all.

Each worker answers the command `metrics` on its control socket with its own page. Whoever is
scraped asks the others, and puts the pages together with a label `worker`. One that does not answer
in time is left out: it is starting, or it is gone.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tollway.api.admin.control import Commands, ask
from tollway.errors import TollwayError
from tollway.metrics.pages import merged_pages

METRICS = "metrics"
ANSWER_SECONDS_MAX = 2.0


class Siblings:
    """`data_dirs` are those of all workers, by their numbers."""

    def __init__(self, number: int, data_dirs: Sequence[Path]) -> None:
        self._number = number
        self._data_dirs = data_dirs

    async def page(self, own: Callable[[], bytes]) -> bytes:
        others = [n for n in range(len(self._data_dirs)) if n != self._number]
        answers = await asyncio.gather(*(self._page_of(number) for number in others))
        pages = dict(zip(others, answers, strict=True)) | {self._number: own().decode()}
        told = {str(n): page for n, page in sorted(pages.items()) if page is not None}
        return merged_pages("worker", told).encode()

    async def _page_of(self, number: int) -> str | None:
        try:
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                answer = await asyncio.to_thread(ask, self._data_dirs[number], METRICS, {})
        except (TollwayError, OSError, TimeoutError):
            return None
        return None if answer is None else str(answer["page"])


class WithMetrics:
    """The commands, and the one by which workers ask each other."""

    def __init__(self, commands: Commands, own: Callable[[], bytes]) -> None:
        self._commands = commands
        self._own = own

    async def execute(
        self, command: str, arguments: Mapping[str, object], *, actor: str
    ) -> dict[str, object]:
        if command == METRICS:
            return {"page": self._own().decode()}
        return await self._commands.execute(command, arguments, actor=actor)

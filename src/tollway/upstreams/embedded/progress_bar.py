"""Shows on a terminal how far a long fetch is. A module of its own, for rich is large."""

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import (
    Progress as Bars,
)


class TerminalProgress:
    def __init__(self, console: Console) -> None:
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task: TaskID | None = None

    def start(self, total_bytes: int, label: str) -> None:
        self._task = self._bars.add_task(label, total=total_bytes)
        self._bars.start()

    def advance_to(self, count: int) -> None:
        if self._task is not None:
            self._bars.update(self._task, completed=count)

    def done(self) -> None:
        self._bars.stop()

"""Shows how far a long fetch is: a bar on a terminal, a line every tenth elsewhere."""

from typing import Protocol, TextIO


class Progress(Protocol):
    """`start`, any number of `advance_to`, and `done` in every case, also when the work failed."""

    def start(self, total_bytes: int, label: str) -> None: ...

    def advance_to(self, count: int) -> None: ...

    def done(self) -> None: ...


class PlainProgress:
    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._total = 1
        self._label = ""
        self._tenths = 0

    def start(self, total_bytes: int, label: str) -> None:
        self._total, self._label, self._tenths = max(1, total_bytes), label, 0
        self._line(f"{label}: {_megabytes(total_bytes)} MB")

    def advance_to(self, count: int) -> None:
        tenths = min(10, count * 10 // self._total)
        if tenths > self._tenths:
            self._tenths = tenths
            self._line(f"{self._label}: {tenths * 10} % of {_megabytes(self._total)} MB")

    def done(self) -> None:
        pass

    def _line(self, text: str) -> None:
        # Flushed: in a log that is followed, a line is only worth something while the fetch runs.
        self._out.write(text + "\n")
        self._out.flush()


def _megabytes(count: int) -> str:
    return f"{count / 1_000_000:.1f}"

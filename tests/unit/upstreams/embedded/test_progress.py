import io

from rich.console import Console

from tollway.upstreams.embedded.progress import PlainProgress
from tollway.upstreams.embedded.progress_bar import TerminalProgress


def test_without_a_terminal_there_is_a_line_for_every_tenth() -> None:
    out = io.StringIO()
    progress = PlainProgress(out)

    progress.start(50_000_000, "Fetching")
    for count in range(0, 50_000_001, 1_000_000):
        progress.advance_to(count)
    progress.done()

    lines = out.getvalue().splitlines()
    assert lines[0] == "Fetching: 50.0 MB"
    assert lines[1] == "Fetching: 10 % of 50.0 MB"
    assert len(lines) == 11


def test_on_a_terminal_there_is_a_bar_of_bytes() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    progress = TerminalProgress(console)

    progress.start(50_000_000, "Fetching")
    progress.advance_to(25_000_000)
    progress.done()

    assert isinstance(console.file, io.StringIO)
    assert "25.0/50.0 MB" in console.file.getvalue()

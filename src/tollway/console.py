"""What `tollway serve` shows: a pleasure to read on a terminal, plain lines elsewhere. All of it
goes to stdout. rich is imported where there is a terminal."""

import json
import sys
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from tollway.errors import how_many
from tollway.upstreams.embedded.progress import PlainProgress, Progress


class Welcome(Struct, frozen=True):
    """`secret` is there on the first start only: it is shown once. `model` is the first one."""

    base_url: str
    secret: str | None
    model: str
    models: int
    data_dir: Path

    @property
    def serves(self) -> str:
        return self.model if self.models == 1 else f"{self.model} and {self.models - 1} more"

    @property
    def curl(self) -> str:
        question = {"role": "user", "content": "What is the capital of France?"}
        # Without a bound a small model may talk until its context is full, for minutes.
        body = {"model": self.model, "messages": [question], "max_tokens": 200}
        token = self.secret or "$TOLLWAY_TOKEN"
        return (
            f"curl {self.base_url}/chat/completions \\\n"
            f'  -H "Authorization: Bearer {token}" \\\n'
            f'  -H "Content-Type: application/json" \\\n'
            f"  -d '{json.dumps(body)}'"
        )


class Console(Protocol):
    def progress(self) -> Progress: ...

    def welcome(self, welcome: Welcome) -> None: ...

    def stopping(self, running: int, drain_seconds: float) -> None: ...


_SHOWN_BEFORE = (
    "The token was shown at the first start; `tollway token issue --account default` makes another."
)


class PlainConsole:
    def progress(self) -> Progress:
        return PlainProgress(sys.stdout)

    def welcome(self, welcome: Welcome) -> None:
        lines = [
            f"Tollway serves {welcome.serves}",
            f"Base URL: {welcome.base_url}",
            f"Data: {welcome.data_dir}",
            f"Token: {welcome.secret}" if welcome.secret else _SHOWN_BEFORE,
            "Try it:",
            welcome.curl,
        ]
        print("\n".join(lines), flush=True)  # noqa: T201 (this is the command's output)

    def stopping(self, running: int, drain_seconds: float) -> None:
        print(_stopping(running, drain_seconds), flush=True)  # noqa: T201 (as above)


class TerminalConsole:
    def __init__(self) -> None:
        from rich.console import Console as RichConsole

        self._console = RichConsole(highlight=False)

    def progress(self) -> Progress:
        from tollway.upstreams.embedded.progress_bar import TerminalProgress

        return TerminalProgress(self._console)

    def welcome(self, welcome: Welcome) -> None:
        from rich.panel import Panel
        from rich.syntax import Syntax
        from rich.table import Table

        facts = Table.grid(padding=(0, 2))
        facts.add_row("[bold]Base URL[/]", f"[cyan]{welcome.base_url}[/]")
        facts.add_row("[bold]Model[/]", welcome.serves)
        facts.add_row("[bold]Data[/]", str(welcome.data_dir))
        if welcome.secret is not None:
            facts.add_row("[bold]Token[/]", f"[green]{welcome.secret}[/] [dim](shown once)[/]")
        self._console.print(
            Panel(facts, title="Tollway is open", border_style="green", expand=False)
        )
        if welcome.secret is None:
            self._console.print(f"[dim]{_SHOWN_BEFORE}[/]")
        self._console.print("Try it:")
        # Not wrapped: it is there to be pasted.
        self._console.print(
            Syntax(welcome.curl, "bash", background_color="default"), soft_wrap=True
        )
        self._console.print("[dim]Ctrl-C stops it.[/]")

    def stopping(self, running: int, drain_seconds: float) -> None:
        self._console.print(f"[dim]{_stopping(running, drain_seconds)}[/]")


def _stopping(running: int, drain_seconds: float) -> str:
    if not running:
        return "Stopping: no request runs."
    return (
        f"Stopping: {how_many(running, 'request')} may run on for up to {drain_seconds:g} s. "
        "Ctrl-C again stops at once."
    )

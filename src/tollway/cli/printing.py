"""What comes back, as text: JSON, lines of a record, a table."""

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import typer

Object = Mapping[str, Any]
Row = Callable[[Object], Sequence[object]]

_WIDTH_MAX = 10_000


def print_list(result: Object, as_json: bool, columns: Sequence[str], row: Row) -> None:
    if as_json:
        print_json(result)
    else:
        print_table(columns, (row(element) for element in result["data"]))


def print_json(result: Object) -> None:
    typer.echo(json.dumps(result, indent=2, ensure_ascii=False))


def print_record(fields: Mapping[str, object]) -> None:
    for label, value in fields.items():
        typer.echo(f"{label + ':':<20} {value}")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on a terminal; elsewhere lines of tab-separated values, which other programs can
    cut."""
    if not sys.stdout.isatty():
        for row in (columns, *rows):
            typer.echo("\t".join(str(value) for value in row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=True)
    for row in rows:
        # Text, so that square brackets in a name are not taken for markup.
        table.add_row(*(Text(str(value)) for value in row))
    console = Console()
    # As wide as it is, and the terminal breaks its lines: an id that is folded within its column
    # cannot be copied.
    wide = console.measure(table, options=console.options.update(max_width=_WIDTH_MAX)).maximum
    console.width = max(console.width, wide)
    console.print(table)

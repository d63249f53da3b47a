"""The pages of docs/reference, made from the code: its settings, metrics, commands, API, dialects.

`scripts/reference` writes them; tests/unit/test_docs.py holds them to the code.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import typer
from typer.testing import CliRunner

from tollway import cli
from tollway.api.openapi import document
from tollway.metrics.described import described
from tollway.settings import SECTIONS, Secret, StoreAddress
from tollway.upstreams.dialects import DIALECTS, OPENAIS_OWN, Dialect

FOLDER = Path(__file__).parents[2] / "docs" / "reference"
HELP_COLUMNS = 100

Schema = Mapping[str, Any]


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, make in PAGES.items():
        (FOLDER / name).write_text(make(), encoding="utf-8")


def settings_page() -> str:
    lines = [
        "# Settings",
        "",
        "The keys of the file that `tollway serve --config FILE` reads, in TOML. All of them have a"
        " default or are needed only in a table that you write. `tollway check` reads the file"
        " without starting anything.",
    ]
    for section, struct in SECTIONS.items():
        schemas = msgspec.json.schema_components([struct], schema_hook=_of_a_custom_type)[1]
        schema = schemas[struct.__name__]
        lines += ["", f"## {_SECTION_TITLES.get(section, f'[{section}]')}", ""]
        if "description" in schema:
            lines += [" ".join(schema["description"].split()), ""]
        needed = schema.get("required", [])
        lines += _table(
            ("Key", "Type", "Default", "Meaning"),
            (
                (f"`{key}`", _type(value), _default(value, key in needed), value["description"])
                for key, value in schema["properties"].items()
            ),
        )
    return _page(lines)


def metrics_page() -> str:
    lines = [
        "# Metrics",
        "",
        "What `/metrics` shows, for Prometheus. A histogram adds `_bucket`, `_sum` and `_count` to"
        " its name. No label has a value that a client chose.",
        "",
    ]
    lines += _table(
        ("Name", "Kind", "Labels", "Meaning"),
        (
            (f"`{one.name}`", one.kind, ", ".join(f"`{label}`" for label in one.labels), one.help)
            for one in described()
        ),
    )
    return _page(lines)


def commands_page() -> str:
    lines = ["# Commands", "", *_fenced(_help())]
    for words in _commands(cli.app):
        lines += ["", f"## tollway {' '.join(words)}", "", *_fenced(_help(*words))]
    return _page(lines)


def api_page() -> str:
    # The version is not the page's matter: it would be out of date with each release.
    described = document("")
    lines = [
        "# API",
        "",
        f"{described['info']['description']} What is served at `/openapi.json` is the whole of it;"
        " this page is made from the same types.",
    ]
    for path, item in described["paths"].items():
        for method, operation in item.items():
            lines += ["", f"## {method.upper()} {path}", "", *_operation(operation)]
    lines += ["", "## Errors", "", *_errors(described), "", "## Headers of replies", ""]
    lines += _table(
        ("Header", "Meaning"),
        (
            (f"`{name}`", header["description"])
            for name, header in described["components"]["headers"].items()
        ),
    )
    return _page(lines)


def dialects_page() -> str:
    lines = [
        "# Dialects",
        "",
        "Servers that speak OpenAI's API differ in small things. `dialect` in `[[upstreams]]` says"
        " which one an upstream is; without it an upstream is `generic`: it is asked as OpenAI"
        " documents, and all shapes of replies below are read. Clients see one form whichever"
        " server answers: reasoning in `reasoning_content`, the four finish reasons, calls with ids"
        " and numbers, and the parts of the usage where OpenAI has them.",
        "",
        "## How it is asked",
        "",
        "A field that a server does not understand is not sent. Where no upstream of a model"
        " understands it, the model does not support it: it is named in"
        " `X-Tollway-Ignored-Params`, and refused for a strict token.",
        "",
        "An assistant's message that comes back with its `reasoning_content` is sent on with it, in"
        " the field that the server has its reasoning in; without it, where the server has or takes"
        " none. Its `reasoning_details`, and the signatures of its text and calls"
        " (`extra_content`), are sent on to the servers that say such things, and to no others.",
        "",
    ]
    rows = list(DIALECTS.values())
    lines += [f"*OpenAI's own* are {_codes(sorted(OPENAIS_OWN))}.", ""]
    lines += _table(
        ("Dialect", "Server", "Cap on length", "Not sent", "And"),
        ((f"`{row.name}`", row.title, f"`{row.cap}`", _not_sent(row), _asked(row)) for row in rows),
    )
    lines += [
        "",
        "## What it answers",
        "",
        "OpenAI's own words for an end are read everywhere, and so is each of these; what is none"
        " of them (`abort`, `error`, `insufficient_system_resource`) is a failure of the upstream."
        " *Busy* are the statuses of a server that is at its capacity.",
        "",
    ]
    lines += _table(
        ("Dialect", "Reasoning in", "Ends", "Cached tokens in", "Reasoning tokens in", "Busy"),
        (
            (
                f"`{row.name}`",
                _codes(row.reasoning),
                ", ".join(f"`{theirs}` = `{ours}`" for theirs, ours in row.ends.items()),
                _codes(row.cached_tokens),
                _codes(row.reasoning_tokens)
                + (" or `total_tokens` alone" if row.counts_reasoning_apart else ""),
                ", ".join(str(status) for status in sorted(row.too_busy)),
            )
            for row in rows
        ),
    )
    return _page(lines)


def _codes(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _not_sent(row: Dialect) -> str:
    names = _codes(sorted(row.dropped - OPENAIS_OWN))
    if not OPENAIS_OWN & row.dropped:
        return names
    kept = _codes(sorted(OPENAIS_OWN - row.dropped))
    return ", ".join(filter(None, (names, "*OpenAI's own*" + (f" but {kept}" if kept else ""))))


def _asked(row: Dialect) -> str:
    """What else is done for a server, in words."""
    notes = [f"`{ours}` is sent as `{theirs}`" for ours, theirs in row.renamed.items()]
    if not row.asks_for_usage:
        notes.append("usage comes unasked")
    if row.choices_max is not None:
        notes.append(f"`n` above {row.choices_max} is refused")
    if row.top_p_below is not None:
        notes.append(f"`top_p` of {row.top_p_below:g} is left out")
    if not row.takes_developer:
        notes.append("a developer message becomes a system message")
    if not row.takes_names:
        notes.append("names of messages are left out")
    if not row.takes_reasoning:
        notes.append("reasoning of messages is left out")
    if row.takes_details:
        notes.append("details of reasoning are sent")
    if row.takes_signatures:
        notes.append("signatures of texts and calls are sent")
    if row.call_ids != "any":
        notes.append(f"ids of calls are made of {row.call_ids}")
    if row.key_header != "authorization":
        notes.append(f"the key is in the header `{row.key_header}`")
    return "; ".join(notes)


PAGES: Mapping[str, Callable[[], str]] = {
    "settings.md": settings_page,
    "metrics.md": metrics_page,
    "commands.md": commands_page,
    "api.md": api_page,
    "dialects.md": dialects_page,
}


# --- settings -------------------------------------------------------------------------------------

_SECTION_TITLES = {
    "tiers": "[tiers.NAME]",
    "upstreams": "[[upstreams]]",
    "models": "[[models]]",
    "models.defaults": "defaults of a model",
    "models.upstreams": "upstreams of a model",
}
_TYPES = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "array": "list",
}


def _of_a_custom_type(type_: type) -> dict[str, Any]:
    assert issubclass(type_, Path | Secret | StoreAddress)
    return {"type": "string"}


def _type(schema: Schema) -> str:
    if "anyOf" in schema:
        return " or ".join(
            _type(option) for option in schema["anyOf"] if option != {"type": "null"}
        )
    if "$ref" in schema:
        return "table"
    if "enum" in schema:
        return "one of " + ", ".join(f"`{value}`" for value in schema["enum"] if value is not None)
    if schema["type"] == "array":
        items: Schema = schema["items"]
        return f"list of {_type(items)}" if items else "list"
    least, most = schema.get("minimum"), schema.get("maximum")
    above = schema.get("exclusiveMinimum")
    limits = [
        f"at least {least:,}" if least is not None else "",
        f"above {above:,}" if above is not None else "",
        f"at most {most:,}" if most is not None else "",
    ]
    return ", ".join([_TYPES[schema["type"]], *filter(None, limits)])


def _default(schema: Schema, needed: bool) -> str:
    if needed:
        return "needed"
    if schema.get("default") is None:
        return ""
    return f"`{msgspec.json.encode(schema['default']).decode()}`"


# --- commands -------------------------------------------------------------------------------------


def _commands(group: typer.Typer) -> Iterator[tuple[str, ...]]:
    for command in group.registered_commands:
        assert command.callback is not None
        yield (command.name or command.callback.__name__,)
    for inner in group.registered_groups:
        assert inner.name is not None
        assert inner.typer_instance is not None
        for words in _commands(inner.typer_instance):
            yield (inner.name, *words)


def _help(*words: str) -> str:
    shown = CliRunner().invoke(
        cli.app, [*words, "--help"], prog_name="tollway", terminal_width=HELP_COLUMNS
    )
    assert shown.exit_code == 0, shown.output
    return shown.output


# --- the API --------------------------------------------------------------------------------------


def _operation(operation: Schema) -> list[str]:
    lines = [f"{operation['summary']}.".replace("?.", "?")]
    if "description" in operation:
        lines += ["", operation["description"]]
    if parameters := operation.get("parameters"):
        rows = ((f"`{p['name']}`", p["in"], p.get("description", "")) for p in parameters)
        lines += ["", *_table(("Parameter", "In", "Meaning"), rows)]
    if "requestBody" in operation:
        lines += ["", f"Body: {_schema_name(operation['requestBody'])}."]
    answers = operation["responses"]
    lines += ["", f"Answers: {', '.join(sorted(answers))}."]
    return lines


def _schema_name(body: Schema) -> str:
    return "`" + body["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2] + "`"


def _errors(described: Schema) -> list[str]:
    rows = (
        (status, response["description"])
        for status, response in described["components"]["responses"].items()
    )
    return _table(("Status", "Meaning"), rows)


# --- Markdown -------------------------------------------------------------------------------------


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (columns, *rows)]
    head, *rest = (f"| {' | '.join(row)} |".replace("|  |", "| |") for row in cells)
    return [head, "|" + "---|" * len(columns), *rest]


def _fenced(text: str) -> list[str]:
    return ["```text", *(line.rstrip() for line in text.strip("\n").split("\n")), "```"]


def _page(lines: Sequence[str]) -> str:
    note = "<!-- Made by scripts/reference from the code: change it there. -->"
    return "\n".join([note, "", *lines, ""])


if __name__ == "__main__":
    main()

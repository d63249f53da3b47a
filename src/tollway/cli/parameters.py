"""What commands have in common: the form of their groups, their options and arguments."""

from pathlib import Path
from typing import Annotated

import typer


def group(summary: str) -> typer.Typer:
    # Plain help: with rich it takes three times as long (0.39 s, of which 0.27 are imports).
    return typer.Typer(
        help=summary,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        envvar="TOLLWAY_CONFIG",
        help="The configuration, a TOML file. Without one, the embedded model is served.",
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        metavar="DIR",
        envvar="TOLLWAY_DATA_DIR",
        help="Where the database is. Default: the configuration's, else the user's data folder.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
RequestId = Annotated[
    str, typer.Argument(metavar="REQUEST_ID", help="The X-Request-Id of its reply: req_...")
]
AccountArgument = Annotated[str, typer.Argument(metavar="ACCOUNT", help="Its name or id.")]


def number_or(word: str, option: str, given: str | None) -> int | str | None:
    """What an option says that takes a number from 1 on, or one word that takes the limit away."""
    if given is None or given == word:
        return given
    if given.isascii() and given.isdecimal() and int(given) >= 1:
        return int(given)
    raise typer.BadParameter(f"{option} is a number from 1 on or `{word}`, not {given!r:.80}.")

"""`tollway usage`."""

import datetime
import re
import time
from typing import Annotated, Literal

import typer

from tollway.cli.execution import execute
from tollway.cli.parameters import Config, DataDir, Json
from tollway.cli.printing import print_list

_ago = re.compile(r"([0-9]{1,5})([dh])").fullmatch
_SECONDS = {"d": 86_400, "h": 3600}


def usage(
    by: Annotated[
        Literal["account", "model", "token", "day"],
        typer.Option(metavar="WHAT", help="account, model, token or day."),
    ] = "account",
    since: Annotated[
        str, typer.Option(metavar="WHEN", help="30d, 12h, or a date such as 2026-11-01 (UTC).")
    ] = "30d",
    until: Annotated[
        str | None, typer.Option(metavar="WHEN", help="As --since [default: now]")
    ] = None,
    account: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only this account's [default: all]")
    ] = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Sum up what was used and charged: requests, tokens and credits. Refunds are not taken off."""
    now = time.time()
    arguments = {
        "by": by,
        "since": _moment(since, now),
        "until": now if until is None else _moment(until, now),
        "account": account,
    }
    keys = ("token", "name", "account") if by == "token" else (by,)
    numbers = ("requests", "promptTokens", "completionTokens", "credits")
    print_list(
        execute("usage", arguments, config, data_dir),
        as_json,
        (*keys, "requests", "prompt tokens", "completion tokens", "credits"),
        lambda sums: tuple(sums[name] for name in (*keys, *numbers)),
    )


def _moment(written: str, now: float) -> float:
    if (ago := _ago(written)) is not None:
        return now - int(ago[1]) * _SECONDS[ago[2]]
    try:
        moment = datetime.datetime.fromisoformat(written)
    except ValueError:
        raise typer.BadParameter(
            f"{written!r} is no time. Write 30d, 12h or a date such as 2026-11-01."
        ) from None
    return moment.replace(tzinfo=moment.tzinfo or datetime.UTC).timestamp()

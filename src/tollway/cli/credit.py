"""`tollway credit`."""

from typing import Annotated

import typer

from tollway.cli.execution import execute
from tollway.cli.parameters import AccountArgument, Config, DataDir, Json, RequestId, group
from tollway.cli.printing import Object, print_json
from tollway.errors import how_many

commands = group("Add credits to an account, refund a request, correct by hand.")


# A negative amount looks like an option that is not known; all that are known are still found.
_NEGATIVE_TOO = {"ignore_unknown_options": True}


@commands.command("top-up", context_settings=_NEGATIVE_TOO)
def credit_top_up(
    account: AccountArgument,
    amount: Annotated[int, typer.Argument(metavar="AMOUNT", help="Credits to add, at least 1.")],
    reference: Annotated[
        str | None,
        typer.Option(metavar="R", help="Your own, such as an invoice's. The same one adds once."),
    ] = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Add credits that were paid for."""
    if amount < 1:
        raise typer.BadParameter(
            f"A top-up adds at least 1 credit, and this is {amount}. `tollway credit adjust` takes "
            "credits away."
        )
    arguments = {"account": account, "amount": amount, "reference": reference}
    entry = execute("credit top-up", arguments, config, data_dir)
    # A server of before this was told does not say it.
    is_new = entry.pop("isNew", True)
    _print_entry(entry, as_json)
    if not is_new:
        typer.echo(
            f"Nothing was added now: the reference {reference} was used before, for this top-up.",
            err=True,
        )


@commands.command("refund")
def credit_refund(
    request_id: RequestId,
    amount: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Credits [default: all that it was charged]"),
    ] = None,
    reason: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Why. The account's owner sees it.")
    ] = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Give back what a request was charged, or a part of it, once."""
    arguments = {"request_id": request_id, "amount": amount, "reason": reason}
    _print_entry(execute("credit refund", arguments, config, data_dir), as_json)


@commands.command("adjust", context_settings=_NEGATIVE_TOO)
def credit_adjust(
    account: AccountArgument,
    amount: Annotated[
        int, typer.Argument(metavar="AMOUNT", help="Credits, such as 50, or -50 to take them.")
    ],
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why. The account's owner sees it.")],
    config: Config = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Correct an account's credits by hand, never below what is available."""
    arguments = {"account": account, "amount": amount, "reason": reason}
    _print_entry(execute("credit adjust", arguments, config, data_dir), as_json)


def _print_entry(entry: Object, as_json: bool) -> None:
    if as_json:
        print_json(entry)
        return
    sign = "+" if entry["amount"] > 0 else ""
    typer.echo(
        f"{entry['description']}: {sign}{how_many(entry['amount'], 'credit')}, balance "
        f"{entry['balance']} ({entry['createdAt']})"
    )

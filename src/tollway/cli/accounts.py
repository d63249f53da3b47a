"""`tollway account`."""

from typing import Annotated

import typer

from tollway.cli.execution import execute
from tollway.cli.parameters import Config, DataDir, Json, group, number_or
from tollway.cli.printing import Object, print_json, print_list, print_record
from tollway.errors import how_many

commands = group("Who pays: accounts own credits and tokens.")
AccountName = Annotated[str, typer.Argument(metavar="NAME", help="The account's name or id.")]


@commands.command("create")
def account_create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call it.")],
    credits: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="Its credits [default: limits.starting_credits]"),
    ] = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Make an account, with credits to start with. Before the first start it makes the data
    directory too, and says so."""
    arguments = {"name": name, "credits": credits}
    _print_account(execute("account create", arguments, config, data_dir), as_json)


@commands.command("list")
def account_list(config: Config = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """List all accounts."""
    result = execute("account list", {}, config, data_dir)
    print_list(
        result,
        as_json,
        ("name", "id", "status", "balance", "held", "created"),
        lambda a: (
            a["name"],
            a["id"],
            a["status"],
            a["creditBalance"],
            a["creditsHeld"],
            a["createdAt"],
        ),
    )


@commands.command("show")
def account_show(
    name: AccountName, config: Config = None, data_dir: DataDir = None, as_json: Json = False
) -> None:
    """Show an account's credits and limits."""
    _print_account(execute("account show", {"name": name}, config, data_dir), as_json)


@commands.command("freeze")
def account_freeze(
    name: AccountName, config: Config = None, data_dir: DataDir = None, as_json: Json = False
) -> None:
    """Refuse all requests of an account from now on. Those that run end as they would."""
    _print_account(execute("account freeze", {"name": name}, config, data_dir), as_json)


@commands.command("unfreeze")
def account_unfreeze(
    name: AccountName, config: Config = None, data_dir: DataDir = None, as_json: Json = False
) -> None:
    """Admit a frozen account's requests again."""
    _print_account(execute("account unfreeze", {"name": name}, config, data_dir), as_json)


@commands.command("set")
def account_set(
    name: AccountName,
    requests_per_minute: Annotated[
        str | None, typer.Option(metavar="N", help="Chat requests in any 60 seconds.")
    ] = None,
    concurrent: Annotated[
        str | None, typer.Option(metavar="N", help="Chat requests at a time.")
    ] = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Give an account limits of its own. `default` instead of a number takes one back: it is then
    what the configuration says."""
    if requests_per_minute is None and concurrent is None:
        raise typer.BadParameter("Give --requests-per-minute, --concurrent or both.")
    arguments = {
        "name": name,
        "requests_per_minute": number_or("default", "--requests-per-minute", requests_per_minute),
        "concurrent_requests": number_or("default", "--concurrent", concurrent),
    }
    _print_account(execute("account set", arguments, config, data_dir), as_json)


def _print_account(account: Object, as_json: bool) -> None:
    if as_json:
        print_json(account)
        return
    limits = account["limits"]
    print_record(
        {
            "name": account["name"],
            "id": account["id"],
            "status": account["status"],
            "balance": how_many(account["creditBalance"], "credit"),
            "held": how_many(account["creditsHeld"], "credit"),
            "requests a minute": limits["requestsPerMinute"] or "as configured",
            "requests at a time": limits["concurrentRequests"] or "as configured",
            "created": account["createdAt"],
        }
    )

"""`tollway token`."""

from typing import Annotated

import typer

from tollway.cli.execution import execute
from tollway.cli.parameters import Config, DataDir, Json, group, number_or
from tollway.cli.printing import Object, print_json, print_list, print_record
from tollway.errors import how_many

commands = group("The secrets that programs send: issue, list, change and revoke them.")
TokenId = Annotated[str, typer.Argument(metavar="ID", help="The token's id: tok_...")]


@commands.command("issue")
def token_issue(
    account: Annotated[str, typer.Option(metavar="NAME", help="The account that pays for it.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SCOPE", help="llm-all or account; give it again for both [default: llm-all]"
        ),
    ] = None,
    name: Annotated[str, typer.Option(metavar="N", help="What to call it.")] = "token",
    expires_in: Annotated[
        int | None, typer.Option(metavar="SECONDS", min=1, help="Its life [default: no end]")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="A model that it may use; repeatable [default: all]"),
    ] = None,
    requests_per_minute: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Chat requests in any 60 seconds.")
    ] = None,
    spend_cap: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Credits that it may spend in all. Refunds do not raise it."
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse requests that have unknown fields.")
    ] = False,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Issue a token. Its secret is printed once, alone on standard output: it cannot be shown
    again."""
    arguments = {
        "account": account,
        "scopes": scope or ["llm-all"],
        "name": name,
        "expires_in_seconds": expires_in,
        "models": model or None,
        "requests_per_minute": requests_per_minute,
        "spend_cap": spend_cap,
        "strict": strict,
    }
    issued = execute("token issue", arguments, config, data_dir)
    if as_json:
        print_json(issued)
        return
    typer.echo(
        f"Token {issued['id']} of {issued['account']}, for {', '.join(issued['scopes'])}. "
        "Keep its secret, it is not shown again:",
        err=True,
    )
    typer.echo(issued["personal_access_token"])


@commands.command("list")
def token_list(config: Config = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """List all tokens, without their secrets."""
    print_list(
        execute("token list", {}, config, data_dir),
        as_json,
        (
            "id",
            "name",
            "account",
            "scopes",
            "models",
            "created",
            "expires",
            "revoked",
            "requests a minute",
            "spend cap",
            "cap left",
        ),
        lambda t: (
            t["id"],
            t["name"],
            t["account"],
            " ".join(t["scopes"]),
            "all" if t["models"] is None else " ".join(t["models"]),
            t["createdAt"],
            t["expiresAt"] or "never",
            t["revokedAt"] or "no",
            t["requestsPerMinute"] or "the account's",
            "none" if t["spendCap"] is None else t["spendCap"],
            "none" if t["spendCapLeft"] is None else t["spendCapLeft"],
        ),
    )


@commands.command("set")
def token_set(
    token_id: TokenId,
    name: Annotated[str | None, typer.Option(metavar="N", help="What to call it.")] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID",
            help="A model that it may use, in place of those of before; repeatable. `all`: all "
            "of them.",
        ),
    ] = None,
    requests_per_minute: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Chat requests in any 60 seconds. `default`: the account's limit alone.",
        ),
    ] = None,
    expires_in: Annotated[
        str | None,
        typer.Option(metavar="SECONDS", help="Its life from now on. `never`: no end."),
    ] = None,
    spend_cap: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Credits that it may spend in all, what it has spent included. Only where it was "
            "issued with a spend cap.",
        ),
    ] = None,
    strict: Annotated[
        bool | None,
        typer.Option("--strict/--no-strict", help="Refuse requests that have unknown fields."),
    ] = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Change a token and keep its secret. What is not named stays as it is. Requests that run end
    as they were admitted; the next one finds the change."""
    arguments = {
        "name": name,
        "models": _models(model or None),
        "requests_per_minute": number_or("default", "--requests-per-minute", requests_per_minute),
        "expires_in_seconds": number_or("never", "--expires-in", expires_in),
        "spend_cap": _spend_cap(spend_cap),
        "strict": strict,
    }
    if all(value is None for value in arguments.values()):
        raise typer.BadParameter(
            "Give --name, --model, --requests-per-minute, --expires-in, --spend-cap, --strict or "
            "--no-strict."
        )
    token = execute("token set", {"token_id": token_id, **arguments}, config, data_dir)
    if as_json:
        print_json(token)
    else:
        _print_token(token)


def _models(given: list[str] | None) -> list[str] | str | None:
    if given is None or "all" not in given:
        return given
    if len(given) == 1:
        return "all"
    raise typer.BadParameter("--model is `all` or ids of models, not both.")


def _spend_cap(given: str | None) -> int | None:
    if given is None:
        return None
    if given.isascii() and given.isdecimal() and int(given) >= 1:
        return int(given)
    raise typer.BadParameter(
        f"--spend-cap is a number from 1 on, not {given!r:.80}. It cannot be taken away: issue "
        "another token without one."
    )


def _print_token(token: Object) -> None:
    cap = token["spendCap"]
    print_record(
        {
            "name": token["name"],
            "id": token["id"],
            "account": token["account"],
            "scopes": " ".join(token["scopes"]),
            "models": "all" if token["models"] is None else " ".join(token["models"]),
            "requests a minute": token["requestsPerMinute"] or "the account's",
            "spend cap": "none"
            if cap is None
            else f"{how_many(cap, 'credit')}, {token['spendCapLeft']} left",
            "strict": "yes" if token["strict"] else "no",
            "created": token["createdAt"],
            "expires": token["expiresAt"] or "never",
            "revoked": token["revokedAt"] or "no",
        }
    )


@commands.command("revoke")
def token_revoke(
    token_id: TokenId,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """End a token for good, from its next request on."""
    revoked = execute("token revoke", {"token_id": token_id}, config, data_dir)
    if as_json:
        print_json(revoked)
    else:
        typer.echo(f"Revoked {revoked['id']} ({revoked['name']}) of {revoked['account']}.")

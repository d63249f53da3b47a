"""`tollway token`."""

from typing import Annotated

import typer

from tollway.cli.execution import execute
from tollway.cli.parameters import Config, DataDir, Json, group
from tollway.cli.printing import print_json, print_list

commands = group("The secrets that programs send: issue, list and revoke them.")


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
        ("id", "name", "account", "scopes", "models", "created", "expires", "revoked"),
        lambda t: (
            t["id"],
            t["name"],
            t["account"],
            " ".join(t["scopes"]),
            "all" if t["models"] is None else " ".join(t["models"]),
            t["createdAt"],
            t["expiresAt"] or "never",
            t["revokedAt"] or "no",
        ),
    )


@commands.command("revoke")
def token_revoke(
    token_id: Annotated[str, typer.Argument(metavar="ID", help="The token's id: tok_...")],
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

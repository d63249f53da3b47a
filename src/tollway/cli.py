"""The command `tollway`: what an operator says, as an operation's words and arguments, and what
comes back, as text.

A command reaches the running server through its control socket; where none runs it opens the data
directory itself. What it does is `api/admin/operations.py`'s. Results go to standard output,
everything else to standard error. Imports are within the functions that need them, so that `--help`
and completion answer at once.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tollway import __version__
from tollway.errors import Refused, StartError, TollwayError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    from tollway.settings import Settings

Object = Mapping[str, Any]
Row = Callable[[Object], Sequence[object]]


def _group(summary: str) -> typer.Typer:
    # Plain help: with rich it takes three times as long (0.39 s, of which 0.27 are imports).
    return typer.Typer(
        help=summary,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


app = _group(
    "Metered, prepaid access to language models through one OpenAI-compatible door.\n\n"
    "`tollway serve` starts it; no configuration is needed. The other commands work whether or not "
    "it runs, and a running server sees their effect at once.\n\n"
    "Exit status: 0 done, 1 refused (with why, on standard error), 2 wrong usage."
)
account = _group("Who pays: accounts own credits and tokens.")
credit = _group("Add credits to an account, refund a request, correct by hand.")
token = _group("The secrets that programs send: issue, list and revoke them.")
receipt = _group("What a request used and cost, signed, and checked.")
model = _group("The models on offer.")
upstream = _group("The servers that run the models, while Tollway runs.")
ledger = _group("The books.")
for name, group in {
    "account": account,
    "credit": credit,
    "token": token,
    "receipt": receipt,
    "model": model,
    "upstream": upstream,
    "ledger": ledger,
}.items():
    app.add_typer(group, name=name)

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
AccountName = Annotated[str, typer.Argument(metavar="NAME", help="The account's name or id.")]
RequestId = Annotated[
    str, typer.Argument(metavar="REQUEST_ID", help="The X-Request-Id of its reply: req_...")
]
AccountArgument = Annotated[str, typer.Argument(metavar="ACCOUNT", help="Its name or id.")]


def main() -> None:
    try:
        app(prog_name="tollway")  # also as `python -m tollway`
    except TollwayError as error:
        typer.echo(error.message, err=True)
        raise SystemExit(1) from None


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tollway {__version__}")
        raise typer.Exit


@app.callback()
def options(
    _: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


# --- the server -----------------------------------------------------------------------------------


@app.command()
def serve(
    config: Config = None,
    data_dir: DataDir = None,
    host: Annotated[
        str | None, typer.Option(metavar="H", help="The address to listen on [default: 127.0.0.1]")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(metavar="P", min=0, max=65535, help="The port to listen on [default: 8080]"),
    ] = None,
    workers: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=1,
            max=256,
            help="Processes that serve on the port, mostly one for each core. More than one needs "
            "Postgres and Valkey.",
        ),
    ] = 1,
) -> None:
    """Serve models until Ctrl-C or SIGTERM.

    The first start makes the data directory, an account named `default` and a token for it, and
    prints the token.
    """
    if workers > 1:
        from tollway.console import PlainConsole, TerminalConsole
        from tollway.workers import Given as GivenToWorkers
        from tollway.workers import serve_with_workers

        console = TerminalConsole() if sys.stdout.isatty() else PlainConsole()
        absolute = None if config is None else config.absolute()
        serve_with_workers(workers, GivenToWorkers(absolute, data_dir, host, port), console)
        return
    from tollway.serve import Given, become_server, prepare

    given = Given(
        None if config is None else str(config.absolute()),
        None if data_dir is None else str(data_dir),
        host,
        port,
    )
    prepare(given.settings())
    become_server(given)


@app.command()
def check(config: Config = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """Read the configuration, secrets included, and say what would be served. Starts nothing. A
    database server is connected to, and the rights of the role there are looked at; so is a rate
    store."""
    from tollway.settings import load_settings

    settings = load_settings(config, data_dir=data_dir)
    for warning in settings.warnings:
        typer.echo(warning, err=True)
    excess = _check_database(settings)
    rate_store = _check_rate_store(settings)
    if as_json:
        _print_json(_served(settings))
        return
    server = settings.server
    _print_record(
        {
            "configuration": config or "none: the defaults",
            "listens on": f"http://{_in_url(server.host)}:{server.port}/api/v1",
            "data directory": server.data_dir,
            "database": server.database,
            "rate store": rate_store,
        }
    )
    for line in excess:
        typer.echo(f"warning: {line}", err=True)
    for upstream in settings.upstreams:
        key = "without a key" if upstream.api_key is None else "with its key"
        _print_record({f"upstream {upstream.name}": f"{upstream.base_url} {key}"})
    typer.echo()
    _print_table(
        ("model", "tier", "prompt_rate", "completion_rate", "context", "output", "upstream"),
        (
            (
                m.id,
                m.tier,
                m.prompt_rate,
                m.completion_rate,
                m.context_length,
                m.max_output_tokens,
                ", ".join(by.upstream for by in m.upstreams),
            )
            for m in settings.models
        ),
    )


@app.command()
def reload(config: Config = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """Have the running server read its configuration again, and print what changed.

    Models, prices, upstreams and limits change at once, and no request is dropped. What is wrong is
    refused whole (exit status 1), and the server goes on as it did. SIGHUP and a changed file do
    the same.
    """
    from tollway.api.admin.control import ask_all
    from tollway.settings import load_settings

    if data_dir is None:  # with it, what is wrong with the file is the server's to say
        data_dir = load_settings(config, for_serving=False).server.data_dir
    results = ask_all(data_dir, "reload", {})
    if not results:
        raise Refused(f"No server runs on {data_dir}. It reads its configuration when it starts.")
    result = results[0]  # workers have the same file, and say the same
    if as_json:
        _print_json(result)
        return
    for change in result["changes"]:
        typer.echo(change)
    for change in result["afterRestart"]:
        typer.echo(f"{change} (with a restart alone)")
    if not result["changes"] and not result["afterRestart"]:
        typer.echo("Nothing has changed.")


def _check_database(settings: "Settings") -> list[str]:
    """What the role there could do that it need not. Raises `Refused` where it could not serve."""
    if not settings.server.database.scheme:
        return []
    import asyncio

    from tollway.maintenance import check_database

    why_not, excess = asyncio.run(check_database(settings))
    if why_not is not None:
        raise Refused(f"{why_not[0].upper()}{why_not[1:]}.")
    return excess


def _check_rate_store(settings: "Settings") -> str:
    """What it is. Raises `StartError` where it cannot be used."""
    address = settings.server.rate_store
    if not address.scheme:
        return str(address)
    import asyncio

    from tollway.maintenance import check_rate_store

    return f"{address} ({asyncio.run(check_rate_store(settings))})"


def _served(settings: "Settings") -> Object:
    server = settings.server
    return {
        "host": server.host,
        "port": server.port,
        "dataDir": str(server.data_dir),
        "database": str(server.database),
        "rateStore": str(server.rate_store),
        "upstreams": [{"name": u.name, "baseUrl": u.base_url} for u in settings.upstreams],
        "models": [
            {
                "id": m.id,
                "tier": m.tier,
                "pricing": {
                    "prompt": m.prompt_rate,
                    "completion": m.completion_rate,
                    "cached_prompt": m.prompt_rate
                    if m.cached_prompt_rate is None
                    else m.cached_prompt_rate,
                    "reasoning": m.completion_rate
                    if m.reasoning_rate is None
                    else m.reasoning_rate,
                },
                "context_length": m.context_length,
                "max_output_tokens": m.max_output_tokens,
                "upstreams": [{"name": by.upstream, "model": by.model} for by in m.upstreams],
            }
            for m in settings.models
        ],
    }


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


@app.command()
def migrate(
    database: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            envvar="TOLLWAY_MIGRATE_DATABASE",
            help="The database with the role that owns its tables: postgresql://..., env:NAME or "
            "file:PATH [default: server.database]",
        ),
    ] = None,
    serving_role: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Who gets the rights to serve, and no others [default: the role of "
            "server.database]",
        ),
    ] = None,
    source: Annotated[
        Literal["sqlite"] | None,
        typer.Option(
            "--from",
            help="Then move what the SQLite file in the data directory has, verified before and "
            "after. No server may run on it.",
        ),
    ] = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Bring the tables in Postgres up to this version, and give the serving role its rights.

    It may run while servers do. A database that a newer version has migrated is refused.
    """
    import asyncio

    from tollway.maintenance import migrate_database, move_to_postgres
    from tollway.settings import load_settings, resolve_address

    settings = load_settings(config, data_dir=data_dir, for_serving=False)
    try:
        address = None if database is None else resolve_address(database, Path.cwd())
    except ValueError as error:
        raise Refused(f"--database: {error}.") from None
    done = migrate_database(settings, address, serving_role)
    moved = None if source is None else asyncio.run(move_to_postgres(settings))
    if as_json:
        _print_json(
            {
                "database": done.database,
                "applied": done.applied,
                "servingRole": done.serving_role,
                "movedRows": None if moved is None else moved.rows,
            }
        )
        return
    applied = ", ".join(done.applied) or "nothing: it was up to date"
    typer.echo(f"Applied to {done.database}: {applied}.")
    if done.serving_role is not None:
        typer.echo(f"The role {done.serving_role} may serve from it.")
    if moved is not None:
        counts = ", ".join(f"{count} {table}" for table, count in moved.rows.items() if count)
        typer.echo(f"Moved {counts or 'nothing'}; {moved.credits} credits in all. Both are whole.")


# --- accounts -------------------------------------------------------------------------------------


@account.command("create")
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
    """Make an account, with credits to start with."""
    arguments = {"name": name, "credits": credits}
    _print_account(_execute("account create", arguments, config, data_dir), as_json)


@account.command("list")
def account_list(config: Config = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """List all accounts."""
    result = _execute("account list", {}, config, data_dir)
    _print_list(
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


@account.command("show")
def account_show(
    name: AccountName, config: Config = None, data_dir: DataDir = None, as_json: Json = False
) -> None:
    """Show an account's credits and limits."""
    _print_account(_execute("account show", {"name": name}, config, data_dir), as_json)


@account.command("freeze")
def account_freeze(
    name: AccountName, config: Config = None, data_dir: DataDir = None, as_json: Json = False
) -> None:
    """Refuse all requests of an account from now on. Those that run end as they would."""
    _print_account(_execute("account freeze", {"name": name}, config, data_dir), as_json)


@account.command("unfreeze")
def account_unfreeze(
    name: AccountName, config: Config = None, data_dir: DataDir = None, as_json: Json = False
) -> None:
    """Admit a frozen account's requests again."""
    _print_account(_execute("account unfreeze", {"name": name}, config, data_dir), as_json)


@account.command("set")
def account_set(
    name: AccountName,
    requests_per_minute: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Chat requests in any 60 seconds.")
    ] = None,
    concurrent: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Chat requests at a time.")
    ] = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Give an account limits of its own."""
    if requests_per_minute is None and concurrent is None:
        raise typer.BadParameter("Give --requests-per-minute, --concurrent or both.")
    arguments = {
        "name": name,
        "requests_per_minute": requests_per_minute,
        "concurrent_requests": concurrent,
    }
    _print_account(_execute("account set", arguments, config, data_dir), as_json)


# --- credit ---------------------------------------------------------------------------------------


@credit.command("top-up")
def credit_top_up(
    account: AccountArgument,
    amount: Annotated[int, typer.Argument(metavar="AMOUNT", min=1, help="Credits to add.")],
    reference: Annotated[
        str | None,
        typer.Option(metavar="R", help="Your own, such as an invoice's. The same one adds once."),
    ] = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Add credits that were paid for."""
    arguments = {"account": account, "amount": amount, "reference": reference}
    _print_entry(_execute("credit top-up", arguments, config, data_dir), as_json)


@credit.command("refund")
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
    _print_entry(_execute("credit refund", arguments, config, data_dir), as_json)


# A negative amount looks like an option that is not known; all that are known are still found.
@credit.command("adjust", context_settings={"ignore_unknown_options": True})
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
    _print_entry(_execute("credit adjust", arguments, config, data_dir), as_json)


# --- tokens ---------------------------------------------------------------------------------------


@token.command("issue")
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
    issued = _execute("token issue", arguments, config, data_dir)
    if as_json:
        _print_json(issued)
        return
    typer.echo(
        f"Token {issued['id']} of {issued['account']}, for {', '.join(issued['scopes'])}. "
        "Keep its secret, it is not shown again:",
        err=True,
    )
    typer.echo(issued["personal_access_token"])


@token.command("list")
def token_list(config: Config = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """List all tokens, without their secrets."""
    _print_list(
        _execute("token list", {}, config, data_dir),
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


@token.command("revoke")
def token_revoke(
    token_id: Annotated[str, typer.Argument(metavar="ID", help="The token's id: tok_...")],
    config: Config = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """End a token for good, from its next request on."""
    revoked = _execute("token revoke", {"token_id": token_id}, config, data_dir)
    if as_json:
        _print_json(revoked)
    else:
        typer.echo(f"Revoked {revoked['id']} ({revoked['name']}) of {revoked['account']}.")


# --- receipts -------------------------------------------------------------------------------------


@receipt.command("show")
def receipt_show(
    request_id: RequestId,
    signed: Annotated[
        bool, typer.Option("--signed", help="Sign it, for `tollway receipt verify`.")
    ] = False,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Show a request's receipt. A signed one is always JSON, to be kept in a file."""
    arguments = {"request_id": request_id, "signed": signed}
    _print_receipt(_execute("receipt show", arguments, config, data_dir), as_json or signed)


@receipt.command("verify")
def receipt_verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The signed receipt, as JSON.")],
    key: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The public key, as GET /receipts/public-key shows it, or in PEM "
            "[default: the data directory's]",
        ),
    ] = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Check a signed receipt, without a server: is it as it was signed, and is the charge what the
    usage costs at the rates? Each fault is printed."""
    from tollway.api.receipts import faults_of
    from tollway.wire.strict_json import parse_object

    public_key = _public_key(key, config, data_dir)
    document = parse_object(_read(file))
    faults = faults_of(document, public_key)
    if as_json:
        _print_json({"data": faults})
    elif not faults:
        typer.echo("The receipt is as it was signed, and its charge is what the usage costs.")
    for fault in faults:
        typer.echo(fault, err=True)
    if faults:
        raise typer.Exit(1)


def _public_key(
    file: Path | None, config: Path | None, data_dir: Path | None
) -> "Ed25519PublicKey":
    from tollway.ledger.signing import SigningKey, read_public_key
    from tollway.settings import load_settings

    if file is not None:
        try:
            return read_public_key(_read(file))
        except ValueError as error:
            raise Refused(f"{file} is not a public key: {error}.") from None
    settings = load_settings(config, data_dir=data_dir, for_serving=False)
    if settings.server.database.scheme:
        import asyncio

        from tollway.store import stored_signing_key

        stored = asyncio.run(stored_signing_key(settings))
        return read_public_key(stored.public_pem().encode())
    folder = settings.server.data_dir
    key = SigningKey.existing(folder)
    if key is None:
        raise Refused(f"There is no signing key in {folder}. Give the public one with --key.")
    return read_public_key(key.public_pem().encode())


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise Refused(f"{file} cannot be read: {error.strerror}.") from None


# --- models, ledger -------------------------------------------------------------------------------


@model.command("list")
def model_list(config: Config = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """List the models on offer, with their rates in credits per million tokens."""
    _print_list(
        _execute("model list", {}, config, data_dir),
        as_json,
        ("id", "tier", "prompt_rate", "completion_rate", "context", "output"),
        lambda m: (
            m["id"],
            m["tier"],
            m["pricing"]["prompt"],
            m["pricing"]["completion"],
            m["context_length"],
            m["max_output_tokens"],
        ),
    )


_UPSTREAM_COLUMNS = (
    "name",
    "condition",
    "since",
    "in_flight",
    "limit",
    "waiting",
    "requests",
    "failures",
    "chat_ms",
    "stream_ms",
    "why",
)


@upstream.command("list")
def upstream_list(config: Config = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """List the upstreams of the running server: may they be asked, how busy and how quick are they?

    Its condition is serving, open (its circuit is: it failed), probing, resting (it asked for
    that), set aside (it reported more than its cap), unhealthy (its checks fail) or not running."""
    _print_list(
        _execute("upstream list", {}, config, data_dir),
        as_json,
        _UPSTREAM_COLUMNS,
        lambda u: (
            u["name"],
            u["condition"],
            u["since"],
            u["inFlight"],
            u["concurrentRequests"] or "none",
            u["waiting"],
            u["requests"],
            u["failures"],
            u["firstByteMs"]["chat"] or "-",
            u["firstByteMs"]["chat_stream"] or "-",
            u["why"] or "-",
        ),
    )


@ledger.command("verify")
def ledger_verify(config: Config = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """Recompute the books from their entries and compare. Each violation is printed with its
    row."""
    result = _execute("ledger verify", {}, config, data_dir)
    violations = result["data"]
    if as_json:
        _print_json(result)
    elif violations:
        _print_table(
            ("check", "row", "message"), ((v["check"], v["row"], v["message"]) for v in violations)
        )
    else:
        typer.echo("The ledger is whole.")
    if violations:
        typer.echo(f"The ledger has {len(violations)} violations.", err=True)
        raise typer.Exit(1)


# --- carrying it out ------------------------------------------------------------------------------


def _execute(
    command: str, arguments: Mapping[str, object], config: Path | None, data_dir: Path | None
) -> dict[str, Any]:
    from tollway.api.admin.control import ask
    from tollway.settings import load_settings

    settings = load_settings(config, data_dir=data_dir, for_serving=False)
    given = {name: value for name, value in arguments.items() if value is not None}
    if settings.server.database.scheme:  # beside the servers, wherever they run
        return _execute_here(settings, command, given)
    result = ask(settings.server.data_dir, command, given)
    if result is not None:
        return result
    try:
        return _execute_here(settings, command, given)
    except StartError:
        # A server that was just starting had the lock but no socket yet; by now it may listen.
        result = ask(settings.server.data_dir, command, given)
        if result is None:
            raise
        return result


def _execute_here(
    settings: "Settings", command: str, arguments: Mapping[str, object]
) -> dict[str, Any]:
    import asyncio

    from tollway.api.admin.control import user_name
    from tollway.store import open_operations

    async def run() -> dict[str, Any]:
        may_create = command == "account create"
        async with open_operations(settings, may_create=may_create) as operations:
            return await operations.execute(command, arguments, actor=user_name(os.getuid()))

    return asyncio.run(run())


# --- printing -------------------------------------------------------------------------------------


def _print_account(account: Object, as_json: bool) -> None:
    if as_json:
        _print_json(account)
        return
    limits = account["limits"]
    _print_record(
        {
            "name": account["name"],
            "id": account["id"],
            "status": account["status"],
            "balance": f"{account['creditBalance']} credits",
            "held": f"{account['creditsHeld']} credits",
            "requests a minute": limits["requestsPerMinute"] or "as configured",
            "requests at a time": limits["concurrentRequests"] or "as configured",
            "created": account["createdAt"],
        }
    )


def _print_entry(entry: Object, as_json: bool) -> None:
    if as_json:
        _print_json(entry)
        return
    typer.echo(
        f"{entry['description']}: {entry['amount']:+} credits, balance {entry['balance']} "
        f"({entry['createdAt']})"
    )


def _print_receipt(receipt: Object, as_json: bool) -> None:
    if as_json:
        _print_json(receipt)
        return
    usage, rates, credits = receipt["usage"], receipt["rates"], receipt["credits"]
    entry = receipt["ledger"]
    _print_record(
        {
            "request": receipt["id"],
            "account": receipt["accountId"],
            "token": receipt["tokenId"],
            "model": receipt["model"],
            "upstream": receipt["upstream"] or "none",
            "ended": f"{receipt['status']} {receipt['finishedAt']}",
            "tokens": f"{usage['prompt_tokens']} + {usage['completion_tokens']} "
            f"({usage['source']})",
            "rates": f"{rates['prompt']} + {rates['completion']} ({receipt['priceId']})",
            "credits": f"{credits['consumed']} of {credits['reserved']} reserved, "
            f"{credits['shortfall']} short",
            "ledger entry": "none" if entry is None else f"{entry['seq']} {entry['hash']}",
        }
    )


def _print_list(result: Object, as_json: bool, columns: Sequence[str], row: Row) -> None:
    if as_json:
        _print_json(result)
    else:
        _print_table(columns, (row(element) for element in result["data"]))


def _print_json(result: Object) -> None:
    typer.echo(json.dumps(result, indent=2, ensure_ascii=False))


def _print_record(fields: Mapping[str, object]) -> None:
    for label, value in fields.items():
        typer.echo(f"{label + ':':<20} {value}")


def _print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
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
        table.add_column(column, overflow="fold")
    for row in rows:
        # Text, so that square brackets in a name are not taken for markup.
        table.add_row(*(Text(str(value)) for value in row))
    Console().print(table)

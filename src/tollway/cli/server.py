"""`tollway serve`, `check`, `reload` and `migrate`: the server and what it is configured with."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tollway.cli.parameters import Config, DataDir, Json
from tollway.cli.printing import Object, print_json, print_record, print_table
from tollway.errors import Refused, how_many

if TYPE_CHECKING:
    from tollway.settings import Settings


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
    from tollway.settings import CommandLine

    given = CommandLine.of(config, data_dir, host, port)
    if workers > 1:
        from tollway.console import PlainConsole, TerminalConsole
        from tollway.workers.supervisor import serve_with_workers

        console = TerminalConsole() if sys.stdout.isatty() else PlainConsole()
        serve_with_workers(workers, given, console)
        return
    from tollway.serve import become_server, prepare

    prepare(given.settings())
    become_server(given)


def check(config: Config = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """Read the configuration, secrets included, and say what would be served. Starts nothing. A
    database server is connected to, and the rights of the role there are looked at; so is a rate
    store."""
    from tollway.maintenance import check_data_directory, check_file, check_model_file
    from tollway.settings import load_settings

    settings = load_settings(config, data_dir=data_dir)
    check_data_directory(settings)
    check_file(settings)
    check_model_file(settings)
    for warning in settings.warnings:
        typer.echo(warning, err=True)
    excess = _check_database(settings)
    rate_store = _check_rate_store(settings)
    if as_json:
        print_json(_served(settings))
        return
    server = settings.server
    print_record(
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
        print_record({f"upstream {upstream.name}": f"{upstream.base_url} {key}"})
    typer.echo()
    print_table(
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
        print_json(result)
        return
    for change in result["changes"]:
        typer.echo(change)
    for change in result["afterRestart"]:
        typer.echo(f"{change} (after a restart)")
    if not result["changes"] and not result["afterRestart"]:
        # Which one, for it is the server's: --config says only where the server is to be found. A
        # server of before this was told does not say it.
        where = f" in {result['file']}" if "file" in result else ""
        typer.echo(f"Nothing has changed{where}.")


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
        print_json(
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
        credits = how_many(moved.credits, "credit")
        typer.echo(f"Moved {counts or 'nothing'}; {credits} in all. Both are whole.")

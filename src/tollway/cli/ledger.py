"""`tollway ledger`."""

import typer

from tollway.cli.execution import execute
from tollway.cli.parameters import Config, DataDir, Json, group
from tollway.cli.printing import print_json, print_table
from tollway.errors import how_many

commands = group("The books.")


@commands.command("verify")
def ledger_verify(config: Config = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """Recompute the books from their entries and compare. Each violation is printed with its
    row."""
    result = execute("ledger verify", {}, config, data_dir)
    violations = result["data"]
    if as_json:
        print_json(result)
    elif violations:
        print_table(
            ("check", "row", "message"), ((v["check"], v["row"], v["message"]) for v in violations)
        )
    else:
        typer.echo("The ledger is whole.")
    if violations:
        typer.echo(f"The ledger has {how_many(len(violations), 'violation')}.", err=True)
        raise typer.Exit(1)

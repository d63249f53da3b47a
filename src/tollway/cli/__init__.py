"""The command `tollway`: what an operator says, as an operation's words and arguments, and what
comes back, as text.

A command reaches the running server through its control socket; where none runs it opens the data
directory itself. What it does is `api/admin/operations.py`'s. Results go to standard output,
everything else to standard error. Imports are within the functions that need them, so that `--help`
and completion answer at once.

Each group of commands is a module. parameters.py has their common options, execution.py reaches
the server, and printing.py shows what it says.
"""

import errno
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from tollway import __version__
from tollway.cli import (
    accounts,
    credit,
    ledger,
    models,
    receipts,
    server,
    tokens,
    upstreams,
    usage,
)
from tollway.cli.parameters import group
from tollway.errors import Refused, TollwayError

app = group(
    "Metered, prepaid access to language models behind one OpenAI-compatible API.\n\n"
    "`tollway serve` starts it; no configuration is needed. The other commands work whether or not "
    "it runs, and a running server sees their effect at once.\n\n"
    "Exit status: 0 done, 1 refused (with why, on standard error), 2 wrong usage."
)
for command in (server.serve, server.check, server.reload, server.migrate, usage.usage):
    app.command()(command)
for name, module in {
    "account": accounts,
    "credit": credit,
    "token": tokens,
    "receipt": receipts,
    "model": models,
    "upstream": upstreams,
    "ledger": ledger,
}.items():
    app.add_typer(module.commands, name=name)


def main() -> None:
    try:
        _require_output()
        _require_utf_8(sys.argv[1:])
        app(prog_name="tollway")  # also as `python -m tollway`
    except TollwayError as error:
        typer.echo(error.message, err=True)
        raise SystemExit(1) from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        typer.echo(
            f"{error.strerror}. Look whether this was done before doing it again. A token whose "
            "secret was not written is of no use: revoke it.",
            err=True,
        )
        _give_up_output()
        raise SystemExit(1) from None


def _give_up_output() -> None:
    """What could not be written is still in the buffer, and Python would try it again at its end
    and complain (docs.python.org/3/library/signal.html, "Note on SIGPIPE")."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())


def _require_output() -> None:
    if sys.stdout is None:
        raise Refused(
            "The standard output is closed, so nothing was done. Send it to a file or to /dev/null."
        )


def _require_utf_8(arguments: Sequence[str]) -> None:
    """They go to other processes as JSON, which has no other bytes."""
    for argument in arguments:
        written = os.fsencode(argument)
        try:
            written.decode()
        except UnicodeDecodeError:
            shown = written.decode(errors="backslashreplace")
            raise Refused(f"The argument {shown} is not UTF-8. Write it as that.") from None


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

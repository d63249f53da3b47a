"""`tollway receipt`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tollway.cli.execution import execute
from tollway.cli.parameters import Config, DataDir, Json, RequestId, group
from tollway.cli.printing import Object, print_json, print_record
from tollway.errors import InvalidRequest, Refused

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    from tollway.ledger.signing import Document

commands = group("What a request used and cost, signed, and checked.")


@commands.command("show")
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
    _print_receipt(execute("receipt show", arguments, config, data_dir), as_json or signed)


def _print_receipt(receipt: Object, as_json: bool) -> None:
    if as_json:
        print_json(receipt)
        return
    usage, rates, credits = receipt["usage"], receipt["rates"], receipt["credits"]
    entry = receipt["ledger"]
    print_record(
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


@commands.command("verify")
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

    public_key, whose = _public_key(key, config, data_dir)
    faults = faults_of(_document(file), public_key, whose)
    if as_json:
        print_json({"data": faults})
    elif not faults:
        typer.echo("The receipt is as it was signed, and its charge is what the usage costs.")
    for fault in faults:
        typer.echo(fault, err=True)
    if faults:
        raise typer.Exit(1)


def _public_key(
    file: Path | None, config: Path | None, data_dir: Path | None
) -> tuple["Ed25519PublicKey", str]:
    """And what it is called."""
    from tollway.ledger.signing import SigningKey, read_public_key
    from tollway.maintenance import check_data_directory
    from tollway.settings import load_settings

    if file is not None:
        try:
            return read_public_key(_read(file)), f"the key in {file}"
        except ValueError:
            raise Refused(
                f"{file} is not a public key (Ed25519). Put there what GET /receipts/public-key "
                "shows, or the key in PEM."
            ) from None
    settings = load_settings(config, data_dir=data_dir, for_serving=False)
    if settings.server.database.scheme:
        import asyncio

        from tollway.store import stored_signing_key

        stored = asyncio.run(stored_signing_key(settings))
        where = f"the key in the database {settings.server.database}"
        return read_public_key(stored.public_pem().encode()), where
    check_data_directory(settings)
    folder = settings.server.data_dir
    key = SigningKey.existing(folder)
    if key is None:
        raise Refused(f"There is no signing key in {folder}. Give the public one with --key.")
    return read_public_key(key.public_pem().encode()), f"the key in {folder}"


def _document(file: Path) -> "Document":
    from tollway.wire.strict_json import parse_object

    try:
        return parse_object(_read(file))
    except InvalidRequest as error:
        why = error.message.removeprefix("The request body")  # it is read as one
        raise Refused(
            f"{file}{why} A receipt is kept as `tollway receipt show --signed` prints it."
        ) from None


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise Refused(f"{file} cannot be read: {error.strerror}.") from None

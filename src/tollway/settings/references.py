"""`env:NAME` and `file:PATH`: where something is written that should not be in the file itself."""

import os
from pathlib import Path
from urllib.parse import urlsplit

from tollway.settings.values import StoreAddress


def resolve_address(value: str, folder: Path) -> StoreAddress:
    """A store's address, or what `env:NAME` or `file:PATH` refers to. Raises `ValueError`, which
    never says the address: it may have a password."""
    address = _resolved(value, folder) if value.startswith(("env:", "file:")) else value
    try:
        urlsplit(address).port  # noqa: B018 (read for what it raises)
    except ValueError:
        raise ValueError(
            "This is no URL. Write it like postgresql://user@host/name or valkey://host:6379/0"
        ) from None
    return StoreAddress(address)


def _resolved(reference: str, folder: Path) -> str:
    scheme, _, where = reference.partition(":")
    if scheme == "env":
        return from_environment(where)
    return from_file(folder / Path(where).expanduser())


def from_environment(name: str) -> str:
    if secret := os.environ.get(name, "").strip():
        return secret
    raise ValueError(f"The environment variable {name} is not set or empty. Set it before starting")


def from_file(path: Path) -> str:
    try:
        secret = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        is_locked = isinstance(error, PermissionError)
        mend = "Let the server's user read it" if is_locked else "Put the key there"
        raise ValueError(f"The file {path} cannot be read: {why}. {mend}") from None
    if not secret:
        raise ValueError(f"The file {path} is empty. Put the key there")
    return secret

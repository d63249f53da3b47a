"""Reads a file into `Settings`: its TOML, then each table by its type, then each by its rules."""

import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from tollway.errors import ConfigurationError
from tollway.settings.checks import check_access_log, check_server, check_unique, check_upstreams
from tollway.settings.mistakes import explained, type_name, unknown, wrong
from tollway.settings.models import embedded_model, model
from tollway.settings.references import from_environment, from_file, resolve_address
from tollway.settings.settings import Settings
from tollway.settings.tables import SECTIONS, Embedded, Limits, ModelTable, Server, Tier, Upstream
from tollway.settings.values import EMBEDDED, Secret, StoreAddress

T = TypeVar("T")


def load_settings(
    path: Path | None,
    *,
    data_dir: Path | None = None,
    host: str | None = None,
    port: int | None = None,
    embedded: Embedded | None = None,
    for_serving: bool = True,
) -> Settings:
    """What the file says, or the defaults without one; the other arguments go before the file's.

    `for_serving` False leaves every `api_key` None and does not look for the model's file: an
    operator's command must work in a shell that lacks the keys. Raises `ConfigurationError`.
    """
    document = {} if path is None else _read(path)
    folder = Path.cwd() if path is None else path.resolve().parent
    settings = _Reader(folder, for_serving, embedded).settings(document)
    overrides: dict[str, Any] = {
        "data_dir": None if data_dir is None else data_dir.expanduser().absolute(),
        "host": host,
        "port": port,
    }
    given = {key: value for key, value in overrides.items() if value is not None}
    server = msgspec.structs.replace(settings.server, **given)
    if for_serving:
        check_access_log(server)
    return msgspec.structs.replace(settings, server=server)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigurationError(
            f"The configuration {path} cannot be read: {error.strerror}. Check --config."
        ) from None
    except UnicodeDecodeError:
        raise ConfigurationError(
            f"The configuration {path} is not UTF-8. Save it as that."
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"The configuration {path} is not TOML: {error}.") from None
    except RecursionError:
        raise ConfigurationError(
            f"The configuration {path} is nested too deep. Nothing here is more than a few levels."
        ) from None


class _Reader:
    def __init__(self, folder: Path, for_serving: bool, embedded: Embedded | None) -> None:
        self._folder = folder
        self._embedded = embedded
        self._for_serving = for_serving
        self._key_files: list[Path] = []

    def settings(self, document: Mapping[str, Any]) -> Settings:
        sections = [name for name in SECTIONS if "." not in name]
        for key in document:
            if key not in sections:
                raise unknown(key, key, sections)
        server = self._convert(document.get("server", {}), Server, "server")
        check_server(server)
        embedded = self._embedded
        if embedded is None:
            embedded = self._convert(document.get("embedded", {}), Embedded, "embedded")
        if self._for_serving and embedded.gguf is not None and not embedded.gguf.is_file():
            raise wrong("embedded.gguf", f"there is no file {embedded.gguf}. Correct the path")
        upstreams = self._elements(document, "upstreams", Upstream)
        check_upstreams(upstreams)
        if not self._for_serving:
            upstreams = [msgspec.structs.replace(one, api_key=None) for one in upstreams]
        tiers = self._tiers(document.get("tiers", {}))
        tables = self._elements(document, "models", ModelTable)
        check_unique("models", "id", [table.id for table in tables])
        names = {EMBEDDED, *(upstream.name for upstream in upstreams)}
        return Settings(
            server=server,
            limits=self._convert(document.get("limits", {}), Limits, "limits"),
            embedded=embedded,
            upstreams=tuple(upstreams),
            models=tuple(
                model(f"models[{index}]", table, tiers, names, embedded)
                for index, table in enumerate(tables or [embedded_model(embedded)])
            ),
            key_files=tuple(dict.fromkeys(self._key_files)),
            warnings=tuple(
                f"The key in {path} can be read by every user of this machine. "
                f"Take that away: chmod 600 {path}"
                for path in dict.fromkeys(self._key_files)
                if _is_open_to_all(path)
            ),
        )

    def _tiers(self, value: object) -> dict[str, Tier]:
        if not isinstance(value, dict):
            raise wrong("tiers", "write each as a table, [tiers.NAME]")
        declared: dict[str, object] = value  # pyright: ignore[reportUnknownVariableType]
        tiers = {"budget": Tier(prompt_rate=700, completion_rate=4000)}
        for name, table in declared.items():
            tiers[name] = self._convert(table, Tier, f"tiers.{name}")
        return tiers

    def _elements(self, document: Mapping[str, Any], key: str, type_: type[T]) -> list[T]:
        value: object = document.get(key, [])
        if not isinstance(value, list):
            raise wrong(key, f"write each as a table of its own, [[{key}]]")
        elements: list[object] = value  # pyright: ignore[reportUnknownVariableType]
        return [
            self._convert(element, type_, f"{key}[{index}]")
            for index, element in enumerate(elements)
        ]

    def _convert(self, value: object, type_: type[T], path: str) -> T:
        try:
            return msgspec.convert(value, type_, dec_hook=self._decode)
        except msgspec.ValidationError as error:
            raise explained(str(error), type_, path) from None

    def _decode(self, type_: type, value: object) -> object:
        if not isinstance(value, str):
            raise ValueError(f"Expected `str`, got `{type_name(value)}`")
        if type_ is Path:
            return self._path(value)
        if type_ is StoreAddress:
            return self._store_address(value)
        assert type_ is Secret
        return self._secret(value)

    def _path(self, value: str) -> Path:
        return self._folder / Path(value).expanduser()

    def _store_address(self, value: str) -> StoreAddress:
        if value.startswith("file:"):
            self._key_files.append(self._path(value.removeprefix("file:")))
        return resolve_address(value, self._folder)

    def _secret(self, reference: str) -> Secret:
        scheme, _, where = reference.partition(":")
        if scheme not in ("env", "file") or not where:
            # The value may be the secret itself, so it is not told back.
            raise ValueError(
                "Secrets are not written here. Give the name of an environment variable as "
                "env:NAME, or a file as file:PATH"
            )
        if not self._for_serving:
            return Secret("")  # not kept: `settings` takes them all out
        secret = from_environment(where) if scheme == "env" else self._secret_in_file(where)
        if not (secret.isascii() and secret.isprintable()):
            raise ValueError(
                f"What {reference} holds has characters that no header may have: line breaks or "
                "other than ASCII. Keep only the key there"
            )
        if secret.lower().startswith("bearer "):
            raise ValueError(
                f"What {reference} holds begins with Bearer, which is added to it. Keep only the "
                "key there"
            )
        return Secret(secret)

    def _secret_in_file(self, where: str) -> str:
        path = self._path(where)
        secret = from_file(path)
        self._key_files.append(path)
        return secret


def _is_open_to_all(path: Path) -> bool:
    try:
        return bool(path.stat().st_mode & stat.S_IROTH)
    except OSError:  # it was there a moment ago
        return False

"""What is wrong, with the key's path and the mend."""

import difflib
import re
from collections.abc import Iterable, Sequence

from msgspec import Struct

from tollway import choices
from tollway.errors import ConfigurationError
from tollway.settings.tables import Defaults, ModelTable, Serving

_WHERE = re.compile(r"^(?P<what>.*?)(?: - at `\$(?P<path>.*)`)?$", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<key>.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<key>.*)`")
_TOML_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "str": "text in quotes",
    "bool": "true or false",
    "array": "a list in brackets",
    "object": "a table",
}


def wrong(path: str, why: str) -> ConfigurationError:
    return ConfigurationError(f"{path}: {why}.")


def unknown(path: str, key: str, known: Iterable[str]) -> ConfigurationError:
    mend = _instead(key, sorted(known))
    return ConfigurationError(f"{path}: there is no such setting. {mend}")


def _instead(given: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(given, known, n=1)
    return f"Did you mean `{close[0]}`?" if close else f"There are {', '.join(known)}."


def explained(message: str, type_: type, path: str) -> ConfigurationError:
    """Turns msgspec's words (``Expected `int`, got `str` - at `$.port` ``) into the operator's."""
    found = _WHERE.match(message)
    assert found is not None
    what, within = found["what"], found["path"] or ""
    path += within
    if stray := _UNKNOWN.fullmatch(what):
        table = _table_at(path, type_)
        assert issubclass(table, Struct)
        return unknown(f"{path}.{stray['key']}", stray["key"], table.__struct_fields__)
    if refused := choices.of_refusal(what, type_, within):
        given, known = refused
        mend = _instead(given, known)
        return ConfigurationError(f"{path}: invalid enum value {given!r}. {mend}")
    if missing := _MISSING.fullmatch(what):
        return wrong(f"{path}.{missing['key']}", "it is missing. Add it")
    if "matching regex" in what:
        return wrong(
            path,
            "it may have letters, digits and . _ : / @ + -, 200 at most, and begins with a letter "
            "or a digit",
        )
    what = re.sub(r"`([a-z| ]+)`", lambda name: _in_toml(name[1]), what)
    return wrong(path, what[:1].lower() + what[1:])


def _table_at(path: str, type_: type) -> type:
    """Only models have tables within: their upstreams and their defaults."""
    if type_ is ModelTable and ".upstreams[" in path:
        return Serving
    return Defaults if type_ is ModelTable and path.endswith(".defaults") else type_


def _in_toml(types: str) -> str:
    names = [name for name in types.split(" | ") if name != "null"]
    return " or ".join(_TOML_TYPES.get(name, name) for name in names)


def type_name(value: object) -> str:
    if isinstance(value, list):
        return "array"
    return "object" if isinstance(value, dict) else type(value).__name__

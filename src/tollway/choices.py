"""What a field may be where its type lists the texts, or where its text says which type an object
is of: msgspec says that a value is none of them, and not which there are."""

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

from msgspec import Struct

_INVALID = re.compile(r"[Ii]nvalid (?:enum )?value '(.*)'", re.DOTALL)
_STEP = re.compile(r"(\w+)|\[(\d+)\]")


def of_refusal(
    what: str, type_: type, path: str, document: object = None
) -> tuple[str, tuple[str, ...]] | None:
    """The value that msgspec's words refuse, and what could stand at `path` (such as
    `defaults.verbosity` or `scopes[0]`) within `type_` instead; None where they say something
    else. By `document` it is known which of several types the objects on the way are of."""
    found = _INVALID.fullmatch(what)
    if found is None or not (known := _at(type_, path, document)):
        return None
    return found[1], known


def _at(type_: type, path: str, value: Any) -> tuple[str, ...]:
    types: list[Any] = [type_]
    tags: list[Any] = []
    for name, index in _STEP.findall(path):
        if index:
            value = cast("list[Any]", value)[int(index)] if isinstance(value, list) else None
            continue
        tables = [one for one in _parts(types) if isinstance(one, type) and issubclass(one, Struct)]
        fields = cast("Mapping[str, object]", value if isinstance(value, Mapping) else {})
        configs = {table: table.__struct_config__ for table in tables}
        tags = [config.tag for config in configs.values() if config.tag_field == name]
        said = [
            table
            for table, config in configs.items()
            if config.tag_field and fields.get(config.tag_field) == config.tag
        ]
        hints = [_hints(table) for table in said or tables]
        types = [of_table[name] for of_table in hints if name in of_table]
        value = fields.get(name)
    listed = [get_args(one) for one in _parts(types) if get_origin(one) is Literal]
    known = tags + [value for values in listed for value in values]
    return tuple(dict.fromkeys(value for value in known if isinstance(value, str)))


@lru_cache(maxsize=256)
def _hints(table: type) -> Mapping[str, Any]:
    return get_type_hints(table, include_extras=True)


def _parts(types: list[Any]) -> Iterator[Any]:
    """Each type and all that its unions, lists and annotations are made of. Any: a type has no
    type."""
    for one in types:
        yield one
        if get_origin(one) is not Literal:
            yield from _parts(list(get_args(one)))

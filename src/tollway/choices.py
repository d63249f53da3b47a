"""What a field may be where its type lists the texts, or where a text says which of several objects
it is in: msgspec says that a value is none of them, and not which there are."""

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from msgspec import Struct

_INVALID = re.compile(r"[Ii]nvalid (?:enum )?value '(.*)'", re.DOTALL)
_NAME = re.compile(r"(?:^|\.)(\w+)")


def of_refusal(what: str, type_: type, path: str) -> tuple[str, tuple[str, ...]] | None:
    """The value that msgspec's words refuse, and what could stand at `path` (such as
    `defaults.verbosity` or `scopes[0]`) within `type_` instead; None where they say something
    else."""
    found = _INVALID.fullmatch(what)
    if found is None or not (known := _at(type_, tuple(_NAME.findall(path)))):
        return None
    return found[1], known


@lru_cache(maxsize=256)
def _at(type_: type, names: tuple[str, ...]) -> tuple[str, ...]:
    types: list[Any] = [type_]
    tags: list[str] = []
    is_one_way = True
    for name in names:
        tables = [one for one in _parts(types) if isinstance(one, type) and issubclass(one, Struct)]
        # Which parts a content may have goes by its message's role, and the path does not tell it.
        tags = [tag for table in tables if (tag := _tag(table, name))] if is_one_way else []
        hints = [get_type_hints(table, include_extras=True) for table in tables]
        types = [of_table[name] for of_table in hints if name in of_table]
        is_one_way &= len(types) == 1
    listed = [get_args(one) for one in _parts(types) if get_origin(one) is Literal]
    return (*tags, *(value for values in listed for value in values if isinstance(value, str)))


def _tag(table: type[Struct], field: str) -> str | None:
    """What the field says in an object that is this one; None where it does not say it."""
    config = table.__struct_config__
    return config.tag if config.tag_field == field and isinstance(config.tag, str) else None


def _parts(types: list[Any]) -> Iterator[Any]:
    """Each type and all that its unions, lists and annotations are made of. Any: a type has no
    type."""
    for one in types:
        yield one
        if get_origin(one) is not Literal:
            yield from _parts(list(get_args(one)))

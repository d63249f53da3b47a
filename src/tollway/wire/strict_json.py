"""JSON as the API accepts it: one object, UTF-8, no NaN, no lone surrogate, no key twice, at most
32 deep and at most 65,536 values.

msgspec refuses bad UTF-8, NaN and lone surrogates, but keeps the last of two equal keys without a
word: a filter in front that read the first would have seen another request than we serve. Looking
for them with `json.loads` and a hook on every object costs 8 us for a 1 KB request. So first what
was decoded is written again (1 us): if that is the body to the byte, nothing was dropped. Both SDKs
send JSON like that; only a body with spaces, newlines or needless escapes is read a second time, by
jiter, which tells of a key that comes twice (4 us).

Nothing else runs meanwhile, and how long it takes goes by the number of values: 4 MiB of `[],` take
1 to 3 s. So they have a limit, with which it is 50 to 100 ms.
"""

import json
import math
from collections.abc import Callable
from typing import TypeAlias

import msgspec
from jiter import from_json

from tollway.errors import InvalidRequest

DEPTH_MAX = 32
VALUES_MAX = 65_536

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"


def read_number(written: str) -> float:
    """Of a float: Python reads one like 5e-324 in 0.5 us, msgspec in 10. Raises
    `msgspec.DecodeError` for one that is too large."""
    number = float(written)
    if math.isinf(number):
        raise msgspec.DecodeError("Number out of range")
    return number


_decode: Callable[[bytes], Json] = msgspec.json.Decoder(float_hook=read_number).decode
_encode = msgspec.json.Encoder().encode


def parse_object(body: bytes) -> dict[str, Json]:
    """Raises `InvalidRequest` (invalid_json), saying what is wrong with the body."""
    if not body:
        raise _invalid("The request has no body. Send a JSON object.")
    containers = body.count(b"[") + body.count(b"{")
    _check_values(body, containers)
    try:
        value = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _invalid(f"The request body is not valid JSON: {error}.") from None
    except RecursionError:
        raise _too_deep() from None
    if type(value) is not dict:
        raise _invalid("The request body must be a JSON object.")
    if containers > DEPTH_MAX:
        check_depth(value)
    if _encode(value) != body and not _has_each_key_once(body):
        _refuse_repeated_keys(body)
    return value


def _check_values(body: bytes, containers: int) -> None:
    """Refuses too many in its `containers`, objects and arrays; what is in a text is no value."""
    if len(body) <= VALUES_MAX:
        return
    # The first value in an object or array comes with its opening, each other with a comma. An
    # empty one counts twice.
    if body.count(b",") + containers <= VALUES_MAX:
        return
    if b"\\" in body:
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    if body.count(b'"') > 4 * VALUES_MAX:  # a key and a text for each
        raise _too_many_values()
    without_texts = b"".join(body.split(b'"')[::2])
    if len(without_texts) - len(without_texts.translate(None, b",[{")) > VALUES_MAX:
        raise _too_many_values()


def _invalid(message: str) -> InvalidRequest:
    return InvalidRequest(message, code="invalid_json")


def _too_deep() -> InvalidRequest:
    return _invalid(f"The request body is nested more than {DEPTH_MAX} deep.")


def _too_many_values() -> InvalidRequest:
    return _invalid(
        f"The request body has more than {VALUES_MAX} values, which are all that is in its objects "
        "and arrays. Send fewer."
    )


def check_depth(document: Json, depth_max: int = DEPTH_MAX) -> None:
    """Raises `InvalidRequest` where it has more levels of objects and arrays."""
    level = [document]
    for _ in range(depth_max):
        level = [
            item
            for within in level
            for item in (within.values() if type(within) is dict else within)
            if type(item) is dict or type(item) is list
        ]
        if not level:
            return
    raise _too_deep()


def _has_each_key_once(body: bytes) -> bool:
    try:
        from_json(body, catch_duplicate_keys=True, cache_mode="none")  # keeps no text of a client's
    except ValueError:  # it may be for another reason
        return False
    return True


def _refuse_repeated_keys(body: bytes) -> None:
    def check(pairs: list[tuple[str, object]]) -> None:
        if len(dict(pairs)) == len(pairs):
            return
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _invalid(f"The request body has the key {key!r:.100} twice in one object.")
            seen.add(key)

    try:
        # The numbers are not read: `len` is the cheapest that can be done with their digits.
        json.loads(body, object_pairs_hook=check, parse_int=len, parse_float=len)
    except RecursionError:  # in a value that was dropped, or it would have been seen before
        raise _too_deep() from None

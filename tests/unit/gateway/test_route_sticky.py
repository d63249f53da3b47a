"""Which requests belong together, and that one upstream gets them."""

from typing import Any

import msgspec
import pytest
from tests.unit.gateway.desk import Desk, Upstream, failing
from tests.unit.gateway.parts import ReplyLog, an_admission

from tollway.gateway.relay import Silences, relay
from tollway.gateway.route import key_of
from tollway.gateway.types import Admission, Meter

pytestmark = pytest.mark.usefixtures("no_waiting")


def a_request(content: str, *more: dict[str, object], **fields: Any) -> Admission:
    messages = [
        {"role": "system", "content": "You are a bridge engineer."},
        {"role": "user", "content": content},
        *more,
    ]
    return an_admission(messages=messages, **fields)


def test_the_turns_of_one_conversation_have_one_key_and_others_have_theirs() -> None:
    first = a_request("Why did it fall?")
    second = a_request(
        "Why did it fall?",
        {"role": "assistant", "content": "Wind."},
        {"role": "user", "content": "And then?"},
    )
    other = a_request("Who built it?")
    keys = [key_of(one, by_prefix=True) for one in (first, second, other)]
    assert keys[0] == keys[1] != keys[2]
    assert key_of(first, by_prefix=False) is None


def test_a_clients_own_word_goes_before_the_prefix() -> None:
    alike = [a_request(content, prompt_cache_key="k") for content in ("a", "b")]
    assert key_of(alike[0], by_prefix=True) == key_of(alike[1], by_prefix=True)
    headed = [
        msgspec.structs.replace(one, call=msgspec.structs.replace(one.call, session=session))
        for one, session in zip(alike, (b"s1", b"s2"), strict=True)
    ]
    for by_prefix in (True, False):
        assert key_of(headed[0], by_prefix=by_prefix) != key_of(headed[1], by_prefix=by_prefix)


def test_two_accounts_have_no_key_in_common() -> None:
    one = a_request("Why did it fall?")
    caller = msgspec.structs.replace(
        one.caller, account=msgspec.structs.replace(one.caller.account, id="acc_2")
    )
    other = msgspec.structs.replace(one, caller=caller)
    assert key_of(one, by_prefix=True) != key_of(other, by_prefix=True)


async def test_a_sticky_model_keeps_a_conversation_on_one_upstream_and_spreads_them() -> None:
    desk = Desk(*(Upstream(f"gpu-{n}") for n in range(3)), sticky="prefix")
    homes: dict[str, set[str | None]] = {}
    for content in ("a", "b", "c", "d", "e", "f", "g", "h") * 3:
        meter = Meter()
        admission = a_request(content, model=desk.model)
        await relay(desk.router.route(admission), admission, ReplyLog(), meter, Silences())
        homes.setdefault(content, set()).add(meter.upstream)
    assert all(len(of_one) == 1 for of_one in homes.values())
    assert len(set[str | None]().union(*homes.values())) > 1


async def test_a_conversation_whose_upstream_fails_is_served_by_another() -> None:
    desk = Desk(Upstream("gpu-1", failing(502)), Upstream("gpu-2", failing(502)), sticky="prefix")
    desk.upstreams[1].script = []
    for _ in range(3):
        assert await desk.ask() is None

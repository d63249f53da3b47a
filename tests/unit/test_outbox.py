import asyncio
from typing import Any

from tollway.outbox import Outbox


class Transport:
    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.closing = False

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def is_closing(self) -> bool:
        return self.closing


async def test_all_of_a_turn_is_written_at_its_end_in_order() -> None:
    outbox, log = Outbox(), list[bytes]()
    one: Any = Transport()
    one.written = log
    other: Any = Transport()
    other.written = log
    loop = asyncio.get_running_loop()

    for data, transport in ((b"a", one), (b"b", other), (b"c", one)):
        outbox.write(loop, transport, data)
    assert log == []
    await asyncio.sleep(0)

    assert log == [b"a", b"b", b"c"]


async def test_who_writes_is_told_when_it_is_written_and_not_where_the_other_side_has_left() -> (
    None
):
    outbox, sent = Outbox(), list[str]()
    stays: Any = Transport()
    leaves: Any = Transport()
    loop = asyncio.get_running_loop()

    outbox.write(loop, stays, b"a", lambda: sent.append("stays"))
    outbox.write(loop, leaves, b"b", lambda: sent.append("leaves"))
    assert sent == []
    leaves.closing = True
    outbox.flush()

    assert sent == ["stays"]
    assert (stays.written, leaves.written) == ([b"a"], [])

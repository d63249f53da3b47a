"""Asks an upstream now and then whether it is well, where its operator wants that.

A server that hangs is found out by a request that waits for it in vain, and so is one that is back.
A check spares the client that.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from tollway.upstreams.health import Health

log = logging.getLogger("tollway.upstreams")


class Checkable(Protocol):
    async def check(self, path: str) -> bool: ...


async def keep_checking(
    upstream: Checkable, health: Health, path: str, seconds: float, random: Callable[[], float]
) -> None:
    """Until it is cancelled. The pauses vary, so that many gateways do not all ask at once."""
    while True:
        try:
            health.checked(passed=await upstream.check(path))
        except Exception:
            log.exception("the check of upstream %s failed on a fault of the program", health.name)
        await asyncio.sleep(seconds * (0.75 + random() / 2))

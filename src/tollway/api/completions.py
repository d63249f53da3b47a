"""The metered route: hands what the edge received to the pipeline, and sees that every request is
answered."""

import logging
from collections.abc import Sequence

from tollway.api.address import Network
from tollway.api.exchange import Exchange
from tollway.api.replies import ChatReply, error_reply, send
from tollway.clock import Clock, new_id
from tollway.errors import InternalFault, RequestError
from tollway.gateway.pipeline import Pipeline
from tollway.gateway.types import Call

log = logging.getLogger("tollway.api")


class ChatDoor:
    """Implements the edge's `Door`."""

    def __init__(
        self, pipeline: Pipeline, clock: Clock, trusted_proxies: Sequence[Network]
    ) -> None:
        self._pipeline = pipeline
        self._clock = clock
        self.trusted_proxies = trusted_proxies
        self.winding_down = False

    async def serve(self, call: Call, exchange: Exchange) -> None:
        reply = ChatReply(exchange)
        try:
            await self._pipeline.serve(call, reply)
        except Exception:
            log.exception("request %s failed on a fault of the program", call.request_id)
            if not reply.begun:
                reply.refuse(call, InternalFault(), None)
        finally:
            # A reply without its end would leave the client waiting: cut it, and let the client see
            # that it is cut.
            if not exchange.response_complete:
                exchange.cut()

    def refuse_unparsed(self, error: RequestError, exchange: Exchange) -> None:
        send(exchange, error_reply(error, new_id("req", self._clock.now()), None))

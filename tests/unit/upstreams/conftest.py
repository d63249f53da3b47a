from collections.abc import AsyncIterator

import pytest
from tests.unit.upstreams.raw_server import Server

from tollway.upstreams.pool import ConnectionPool


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def pool(server: Server) -> AsyncIterator[ConnectionPool]:
    pool = ConnectionPool(f"http://127.0.0.1:{server.port}/v1")
    yield pool
    await pool.close()

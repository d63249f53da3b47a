from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.support.api import Api, an_api


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with an_api(tmp_path) as api:
        yield api

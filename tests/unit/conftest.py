from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.support.sqlite import migrated

from tollway.database.sqlite import SqliteDatabase


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[SqliteDatabase]:
    database = SqliteDatabase(migrated(tmp_path / "tollway.db"))
    database.open()
    yield database
    await database.close()

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.unit.gateway.door import Door
from tests.unit.gateway.parts import a_model
from tests.unit.ledger.books import Books

from tollway.gateway import route as route_module


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same upstream is asked again at once."""
    monkeypatch.setattr(route_module, "BACKOFF_SECONDS", 0.0)


@pytest.fixture
async def books(tmp_path: Path) -> AsyncIterator[Books]:
    books = await Books(tmp_path).open()
    await books.account(10_000)
    await books.token("acc_1", None, "tok_1")
    yield books
    await books.close()


@pytest.fixture
def door(books: Books) -> Door:
    return Door(books, a_model())

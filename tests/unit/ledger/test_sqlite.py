from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.unit.ledger.books import Books
from tests.unit.ledger.idempotency_suite import IdempotencySuite
from tests.unit.ledger.ledger_suite import LedgerSuite


class TestSqliteLedger(LedgerSuite, IdempotencySuite):
    @pytest.fixture
    async def books(self, tmp_path: Path) -> AsyncIterator[Books]:
        """The ledger is whole after every test."""
        data_dir = tmp_path / "data"
        data_dir.mkdir()
        books = await Books(data_dir).open()
        yield books
        assert books.verify() == []
        await books.close()

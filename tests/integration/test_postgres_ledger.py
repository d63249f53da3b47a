"""The Postgres ledger keeps every promise that the SQLite one keeps, with credit leases and
without."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.integration.postgres_books import EAGER_LEASES, NO_LEASES, PostgresBooks
from tests.unit.ledger.idempotency_suite import IdempotencySuite
from tests.unit.ledger.ledger_suite import LedgerSuite

from tollway.ledger.postgres.leases import LeasePolicy


class _PostgresSuite(LedgerSuite, IdempotencySuite):
    policy: LeasePolicy

    @pytest.fixture
    async def books(self, database_url: str, tmp_path: Path) -> AsyncIterator[PostgresBooks]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The ledger is whole after every test."""
        books = await PostgresBooks(database_url, tmp_path / "data", policy=self.policy).open()
        yield books
        violations = await books.violations()
        await books.close()
        assert violations == []


class TestPostgresLedger(_PostgresSuite):
    policy = NO_LEASES


class TestPostgresLedgerWithLeases(_PostgresSuite):
    policy = EAGER_LEASES

from collections.abc import Iterator

import pytest
from tests.support.postgres import PostgresServer


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """Shared by all tests that do not stop it."""
    with PostgresServer() as server:
        yield server


@pytest.fixture
def database_url(postgres: PostgresServer) -> Iterator[str]:
    """Of a migrated database that is the test's own, with the serving role."""
    name = postgres.new_database()
    yield postgres.url(name)
    postgres.drop_database(name)

from collections.abc import Iterator

import pytest
from tests.support.edge import EdgeServer, PatientEdge, QuickEdge
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


@pytest.fixture
def edge() -> Iterator[EdgeServer]:
    with EdgeServer(PatientEdge) as server:
        yield server


@pytest.fixture
def quick() -> Iterator[EdgeServer]:
    with EdgeServer(QuickEdge) as server:
        yield server

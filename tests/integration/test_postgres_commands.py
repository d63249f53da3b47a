"""The commands against Postgres: run as an operator runs them, each in a process of its own."""

from pathlib import Path

import psycopg
import pytest
from tests.support.postgres import MIGRATOR, PASSWORD, SERVER, PostgresServer
from tests.support.server import config_for, run_tollway

from tollway.database.migrate import postgres_migrations


@pytest.fixture
def config(tmp_path: Path, database_url: str) -> Path:
    (tmp_path / "database-url").touch(0o600)
    (tmp_path / "database-url").write_text(database_url)
    file = tmp_path / "tollway.toml"
    more = f'[server]\ndatabase = "file:database-url"\ndata_dir = "{tmp_path / "data"}"\n'
    file.write_text(config_for("http://127.0.0.1:1/v1", more=more))
    return file


def test_check_connects_and_says_where_to(config: Path, database_url: str) -> None:
    done = run_tollway("check", "--config", str(config))

    assert (done.status, done.stderr) == (0, "")
    assert f"postgresql://{SERVER}@127.0.0.1" in done.stdout
    assert PASSWORD not in done.stdout


def test_check_warns_of_a_role_that_can_do_too_much(
    config: Path, postgres: PostgresServer, database_url: str
) -> None:
    (config.parent / "database-url").write_text(
        postgres.url(database_url.rpartition("/")[2], MIGRATOR)
    )

    done = run_tollway("check", "--config", str(config))

    assert done.status == 0
    assert "warning: the serving role can do more than it needs: it owns the table" in done.stderr


def test_check_refuses_a_role_that_cannot_serve(
    config: Path, postgres: PostgresServer, database_url: str
) -> None:
    with psycopg.connect(
        postgres.url(database_url.rpartition("/")[2], MIGRATOR), autocommit=True
    ) as owner:
        owner.execute(f"REVOKE UPDATE ON accounts FROM {SERVER}".encode())

    done = run_tollway("check", "--config", str(config))

    assert done.status == 1
    assert "has no UPDATE on accounts: run `tollway migrate`" in done.stderr


def test_migrate_makes_the_tables_and_check_finds_them(
    config: Path, postgres: PostgresServer
) -> None:
    name = postgres.new_database(empty=True)
    (config.parent / "database-url").write_text(postgres.url(name))
    before = run_tollway("check", "--config", str(config))

    done = run_tollway(
        "migrate", "--config", str(config), "--database", postgres.url(name, MIGRATOR)
    )

    assert before.status == 1
    assert "Run `tollway migrate`" in before.stderr
    assert done.status == 0, done.stderr
    assert ", ".join(postgres_migrations()) in done.stdout
    assert PASSWORD not in done.stdout + done.stderr
    assert run_tollway("check", "--config", str(config)).status == 0

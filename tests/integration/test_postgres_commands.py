"""The commands against Postgres: run as an operator runs them, each in a process of its own."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from tests.support.customer import a_customer
from tests.support.fake_upstream import FakeUpstream
from tests.support.postgres import MIGRATOR, PASSWORD, SERVER, PostgresServer
from tests.support.server import TollwayServer, config_for, run_tollway

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


def test_the_upstreams_are_those_of_the_replica_with_the_data_directory(
    tmp_path: Path, database_url: str
) -> None:
    head = f'[server]\ndatabase = "{database_url}"\n'
    with FakeUpstream(models=("parrot-upstream",)) as upstream:
        config = config_for(upstream.base_url, more=head)
        with TollwayServer(tmp_path / "data", config) as server:
            listed = server.command("upstream", "list", "--json")
        stopped = server.command("upstream", "list")

    assert listed.status == 0, listed.stderr
    assert [one["condition"] for one in listed.json()["data"]] == ["serving"]
    assert stopped.status == 1
    assert "No server runs here" in stopped.stderr


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Path]:
    """A SQLite installation that has served, and its configuration for Postgres afterwards."""
    with FakeUpstream(models=("parrot-upstream",)) as upstream:
        data_dir = tmp_path / "data"
        with TollwayServer(data_dir, config_for(upstream.base_url)) as server:
            customer = a_customer(server, credits=5000)
            keyed = ("Idempotency-Key", "once")
            request_ids = [
                customer.chat(keyed).header("x-request-id"),
                *(customer.chat().header("x-request-id") for _ in range(3)),
            ]
            server.operate("credit refund", request_id=request_ids[0])
            (tmp_path / "receipt.json").write_bytes(
                customer.get(f"/receipts/{request_ids[1]}?signed=true").body
            )
            (tmp_path / "account").write_text(customer.account_id)
            (tmp_path / "token").write_text(customer.token)
            (tmp_path / "balance").write_text(str(customer.balance))
        yield tmp_path


def test_an_installation_moves_over_with_its_tokens_credits_and_receipts(
    installation: Path, config: Path, postgres: PostgresServer, database_url: str
) -> None:
    name = database_url.rpartition("/")[2]
    arguments = ("--config", str(config), "--database", postgres.url(name, MIGRATOR))
    done = run_tollway("migrate", *arguments, "--from", "sqlite")

    assert done.status == 0, done.stderr
    assert "4 holds" in done.stdout
    assert (installation / "data" / "moved-to-postgres.db").exists()
    account = (installation / "account").read_text()
    where = ("--config", str(config))
    shown = run_tollway("account", "show", account, *where, "--json").json()
    assert str(shown["creditBalance"]) == (installation / "balance").read_text()
    assert run_tollway("ledger", "verify", *where).status == 0
    signed = run_tollway("receipt", "verify", str(installation / "receipt.json"), *where)
    assert (signed.status, signed.stderr) == (0, "")
    again = run_tollway("migrate", *arguments, "--from", "sqlite")
    assert again.status == 1
    assert "It was moved before: " in again.stderr


@pytest.mark.parametrize("command", ["serve --port 0", "check", "account list", "account create a"])
def test_what_moved_to_postgres_is_not_begun_anew_as_a_file(tmp_path: Path, command: str) -> None:
    (tmp_path / "moved-to-postgres.db").touch()

    done = run_tollway(*command.split(), "--data-dir", str(tmp_path))

    assert done.status == 1
    assert f"The books of {tmp_path} moved to Postgres" in done.stderr
    assert "Set server.database" in done.stderr
    assert not (tmp_path / "tollway.db").exists()


def test_a_ledger_that_is_not_whole_is_not_moved(
    installation: Path, config: Path, postgres: PostgresServer, database_url: str
) -> None:
    with closing(sqlite3.connect(installation / "data" / "tollway.db")) as connection:
        connection.execute("UPDATE accounts SET balance = balance + 1")
        connection.commit()

    name = database_url.rpartition("/")[2]
    arguments = ("--config", str(config), "--database", postgres.url(name, MIGRATOR))
    done = run_tollway("migrate", *arguments, "--from", "sqlite")

    assert done.status == 1
    assert "The SQLite file is not whole, so nothing was moved" in done.stderr
    with psycopg.connect(database_url) as connection:
        assert connection.execute("SELECT count(*) FROM accounts").fetchone() == (0,)
    assert (installation / "data" / "tollway.db").exists()

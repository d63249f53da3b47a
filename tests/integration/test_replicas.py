"""Two real servers on one Postgres: what is done at one is so at the other."""

import json
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.support.customer import Customer, a_customer, eventually
from tests.support.fake_upstream import FakeUpstream
from tests.support.postgres import PASSWORD, PostgresServer
from tests.support.server import TollwayServer, config_for

from tollway.api.admin.control import ask
from tollway.store import START_LOCK

POLL_SECONDS_MAX = 5.0

MORE = """
[server]
database = "env:TOLLWAY_TEST_DATABASE"
[limits]
failed_authentications_per_minute = 100000
requests_per_minute = 100000
"""


@pytest.fixture(scope="module")
def upstream() -> Iterator[FakeUpstream]:
    with FakeUpstream(models=("parrot-upstream",)) as running:
        yield running


@pytest.fixture(scope="module")
def database(postgres: PostgresServer) -> str:
    return postgres.new_database()


@pytest.fixture(scope="module")
def replicas(
    upstream: FakeUpstream,
    postgres: PostgresServer,
    database: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[list[TollwayServer]]:
    """The ledger is whole after all tests, and no server has shown the password."""
    tmp_path = tmp_path_factory.mktemp("replicas")
    database_url = postgres.url(database)
    config = config_for(upstream.base_url, more=MORE)
    servers = [
        TollwayServer(tmp_path / name, config, env={"TOLLWAY_TEST_DATABASE": database_url})
        for name in ("one", "two")
    ]
    for server in servers:
        server.start()
    yield servers
    for server in servers:
        server.stop()
        assert PASSWORD not in server.stdout + server.stderr
        assert "s3cret" not in server.stdout + server.stderr
    done = servers[0].command("ledger", "verify")
    assert done.status == 0, done.stdout + done.stderr


def at(server: TollwayServer, customer: Customer) -> Customer:
    return replace(customer, server=server)


def test_the_first_of_several_makes_the_default_account_and_one_token(
    replicas: list[TollwayServer],
) -> None:
    one, two = replicas

    assert [bool(one.token), bool(two.token)] == [True, False]
    assert len(one.operate("token list")["data"]) == 1


def test_a_request_is_charged_once_and_told_at_every_replica(
    replicas: list[TollwayServer],
) -> None:
    customer = a_customer(replicas[0], credits=1000)

    reply = customer.chat()

    assert reply.status == 200, reply.body
    there = at(replicas[1], customer)
    receipt = there.receipt_of(reply)
    assert receipt["credits"]["consumed"] == int(reply.header("x-credits-consumed") or "")
    assert there.balance == customer.balance == receipt["credits"]["remaining"]


def test_a_token_is_usable_everywhere_when_it_was_issued_and_refused_when_it_was_revoked(
    replicas: list[TollwayServer],
) -> None:
    customer = a_customer(replicas[0], credits=100_000)
    for server in replicas:
        assert at(server, customer).chat().status == 200

    replicas[0].operate("token revoke", token_id=customer.token_id)

    for server in replicas:
        assert at(server, customer).chat().status == 401


def set_at(server: TollwayServer, customer: Customer, **limits: object) -> dict[str, Any]:
    """By the replica itself, and not by a command beside it."""
    done = ask(server.data_dir, "token set", {"token_id": customer.token_id, **limits})
    assert done is not None
    return done


def limits_at(server: TollwayServer, customer: Customer) -> dict[str, Any]:
    return at(server, customer).get("/accounts/me").json()["limits"]


def test_a_token_that_is_changed_beside_the_replicas_is_so_at_each(
    replicas: list[TollwayServer],
) -> None:
    customer = a_customer(replicas[0], credits=100_000, spend_cap=1)
    refused = [at(server, customer).chat(max_tokens=4000).status for server in replicas]

    done = replicas[0].command(
        *("token", "set", customer.token_id, "--spend-cap", "50000", "--json"),
        *("--requests-per-minute", "500", "--model", "acme/parrot"),
    )
    admitted = [at(server, customer).chat(max_tokens=4000) for server in replicas]

    assert done.status == 0, done.stderr
    assert (refused, [one.status for one in admitted]) == ([402, 402], [200, 200])
    spent = sum(int(one.header("x-credits-consumed") or "") for one in admitted)
    for server in replicas:
        limits = limits_at(server, customer)
        assert (limits["tokenSpendCap"], limits["tokenRequestsPerMinute"]) == (50_000, 500)
        assert limits["tokenSpendCapLeft"] == 50_000 - spent
    again = replicas[0].operate("token set", token_id=customer.token_id, spend_cap=spent)
    assert again["spendCapLeft"] == 0
    assert [at(server, customer).chat().status for server in replicas] == [402, 402]


def test_changes_of_one_token_at_several_replicas_at_once_are_all_made(
    replicas: list[TollwayServer],
) -> None:
    for turn in range(5):
        customer = a_customer(replicas[0], credits=100_000, spend_cap=100)
        changes = ({"name": "new"}, {"spend_cap": 900 + turn}, {"strict": True})
        more = ({"requests_per_minute": 70}, {"expires_in_seconds": 3600})
        with ThreadPoolExecutor(5) as threads:
            for number, limits in enumerate((*changes, *more)):
                threads.submit(set_at, replicas[number % 2], customer, **limits)

        for server in replicas:
            (token,) = at(server, customer).get("/auth/pat").json()["data"]
            assert (token["name"], token["spendCap"], token["strict"]) == ("new", 900 + turn, True)
            assert token["requestsPerMinute"] == 70
            assert token["expiresAt"] is not None


def test_a_revocation_wins_over_changes_at_the_same_time(
    replicas: list[TollwayServer], postgres: PostgresServer, database: str
) -> None:
    for turn in range(5):
        customer = a_customer(replicas[0], credits=100_000, name="0")
        revocation = {"token_id": customer.token_id}
        with ThreadPoolExecutor(9) as threads:
            made = [
                threads.submit(set_at, replicas[number % 2], customer, name=str(number))
                for number in range(1, 9)
            ]
            threads.submit(ask, replicas[turn % 2].data_dir, "token revoke", revocation).result()

        refused = [one.exception() for one in made if one.exception() is not None]
        assert all("was revoked, for good" in str(error) for error in refused)
        assert [at(server, customer).chat().status for server in replicas] == [401, 401]
        with postgres.connect(database) as connection:
            audit = connection.execute(
                "SELECT details FROM audit WHERE action = 'token set' AND subject = %s ORDER BY id",
                (customer.token_id,),
            ).fetchall()
            names = connection.execute(
                "SELECT name FROM tokens WHERE id = %s", (customer.token_id,)
            ).fetchall()
        entries = [json.loads(str(details)) for (details,) in audit]
        assert len(entries) == len(made) - len(refused)
        # Each is of what another made of it, so none was lost.
        links = {entry["before"]["name"]: entry["after"]["name"] for entry in entries}
        name = "0"
        for _ in entries:
            name = links.pop(name)
        assert (links, names) == ({}, [(name,)])


def test_a_frozen_account_is_refused_everywhere_and_admitted_again(
    replicas: list[TollwayServer],
) -> None:
    customer = a_customer(replicas[0], credits=100_000)
    replicas[0].operate("account freeze", name=customer.account_id)
    frozen = [at(server, customer).chat().status for server in replicas]
    replicas[0].operate("account unfreeze", name=customer.account_id)
    thawed = [at(server, customer).chat().status for server in replicas]

    assert (frozen, thawed) == ([403, 403], [200, 200])


@pytest.fixture
def no_notifications(postgres: PostgresServer, database: str) -> Iterator[None]:
    with postgres.connect(database) as connection:
        row = connection.execute("SELECT pg_get_functiondef('tell_replicas'::regproc)").fetchone()
        assert row is not None
        told = str(row[0])
        silent = told.replace("PERFORM pg_notify('tollway', 'change');", "")
        assert silent != told
        connection.execute(silent.encode())
        yield
        connection.execute(told.encode())


@pytest.mark.usefixtures("no_notifications")
def test_what_changes_is_heard_of_where_notifications_do_not_arrive(
    replicas: list[TollwayServer],
) -> None:
    customer = a_customer(replicas[0], credits=100_000)
    there = at(replicas[1], customer)
    assert there.chat().status == 200

    replicas[0].operate("account set", name=customer.account_id, requests_per_minute=1)
    eventually(lambda: there.chat().status == 429, POLL_SECONDS_MAX)
    began = time.monotonic()
    replicas[0].operate("token revoke", token_id=customer.token_id)

    assert there.chat().status == 401
    # Not by its lease, which it would lose after 15 seconds.
    assert time.monotonic() - began < POLL_SECONDS_MAX


def test_a_token_that_one_replica_issues_is_good_at_the_other(
    replicas: list[TollwayServer],
) -> None:
    customer = a_customer(replicas[0], credits=100_000)

    issued = customer.post("/auth/pat", {"name": "mine", "scopes": ["llm-all"]}).json()

    there = replace(at(replicas[1], customer), token=issued["personal_access_token"])
    assert there.chat().status == 200


def test_a_key_is_one_requests_at_whichever_replica(replicas: list[TollwayServer]) -> None:
    customer = a_customer(replicas[0], credits=100_000)
    key = ("Idempotency-Key", "once")

    first = customer.chat(key)
    again = at(replicas[1], customer).chat(key)

    assert (first.status, again.status) == (200, 409)
    assert again.json()["error"]["code"] == "idempotency_completed"


def test_a_signed_receipt_is_the_same_from_each(replicas: list[TollwayServer]) -> None:
    customer = a_customer(replicas[0], credits=100_000)
    request_id = customer.chat().header("x-request-id")

    signed = [
        at(server, customer).get(f"/receipts/{request_id}?signed=true").json()
        for server in replicas
    ]

    assert signed[0] == signed[1]
    keys = [at(server, customer).get("/receipts/public-key").json() for server in replicas]
    assert keys[0] == keys[1]


def test_commands_work_beside_the_servers_and_without_them(
    replicas: list[TollwayServer],
) -> None:
    customer = a_customer(replicas[0], credits=10)
    done = replicas[1].command("credit", "top-up", customer.account_id, "90", "--reference", "a")
    assert done.status == 0, done.stderr
    assert at(replicas[0], customer).balance == 100
    for server in replicas:
        server.stop()

    again = replicas[0].command("credit", "top-up", customer.account_id, "90", "--reference", "a")

    assert again.status == 0, again.stderr
    shown = replicas[0].command("account", "show", customer.account_id, "--json").json()
    assert (shown["creditBalance"], shown["creditsHeld"]) == (100, 0)
    for server in replicas:
        server.start()


def test_a_reload_that_is_asked_for_while_a_replica_starts_does_not_end_it(
    upstream: FakeUpstream, postgres: PostgresServer, database: str, tmp_path: Path
) -> None:
    env = {"TOLLWAY_TEST_DATABASE": postgres.url(database)}
    server = TollwayServer(tmp_path / "data", config_for(upstream.base_url, more=MORE), env=env)
    with postgres.connect(database) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", (START_LOCK,))  # another one starts
        server.launch()
        waiting = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        eventually(lambda: connection.execute(waiting).fetchone() is not None, 30.0)

        server.signal(signal.SIGHUP)

    eventually(lambda: "Base URL" in server.stdout, 30.0)
    assert server.stop() == 0


def test_a_price_that_one_replica_reloads_is_the_same_row_at_the_next(
    replicas: list[TollwayServer],
) -> None:
    one, two = replicas
    customer = a_customer(one, credits=1_000_000)
    before = customer.receipt_of(customer.chat())
    for server in replicas:
        assert server.config is not None
        text = server.config.read_text()
        server.config.write_text(text.replace("prompt_rate = 1000\n", "prompt_rate = 7000\n"))
        reloaded = ask(server.data_dir, "reload", {})
        assert reloaded is not None
        assert reloaded["changes"] == ["models.acme/parrot.prompt_rate: 1000 -> 7000"]

    receipts = [
        at(server, customer).receipt_of(at(server, customer).chat()) for server in (one, two)
    ]

    assert [receipt["rates"]["prompt"] for receipt in receipts] == [7000, 7000]
    assert len({receipt["priceId"] for receipt in receipts}) == 1
    assert receipts[0]["priceId"] != before["priceId"]

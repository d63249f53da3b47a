"""A replica that is stopped (SIGSTOP) keeps the credit that it has leased, and answers nobody."""

import json
import re
import signal
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.answers import reply
from tests.support.customer import Customer, a_customer, eventually
from tests.support.fake_upstream import FakeUpstream
from tests.support.http import RawClient, Reply
from tests.support.postgres import PostgresServer
from tests.support.server import TollwayServer, config_for

CREDITS = 8000
HEAD = """
[server]
database = "env:TOLLWAY_TEST_DATABASE"
[limits]
requests_per_minute = 100000
"""


@pytest.fixture
def upstream() -> Generator[FakeUpstream]:
    with FakeUpstream(models=("parrot-upstream",)) as running:
        yield running


@pytest.fixture
def database(postgres: PostgresServer) -> Generator[str]:
    name = postgres.new_database()
    yield name
    postgres.drop_database(name)


@pytest.fixture
def replicas(
    upstream: FakeUpstream, postgres: PostgresServer, database: str, tmp_path: Path
) -> Generator[tuple[TollwayServer, TollwayServer]]:
    """A credit for each input token and two for each of a reply's. The ledger is whole after."""
    config = config_for(upstream.base_url, more=HEAD).replace("_rate = 1000", "_rate = 1000000")
    config = config.replace("_rate = 2000", "_rate = 2000000")
    env = {"TOLLWAY_TEST_DATABASE": postgres.url(database)}
    one, two = (TollwayServer(tmp_path / name, config, env=env) for name in ("one", "two"))
    with ExitStack() as stack:
        stack.enter_context(one)
        stack.enter_context(two)
        yield one, two
    done = one.command("ledger", "verify")
    assert done.status == 0, done.stdout + done.stderr


def leased_here(server: TollwayServer) -> float:
    with RawClient("127.0.0.1", server.port) as client:
        client.request("GET", "/metrics", None)
        page = client.read_reply().body.decode()
    (value,) = re.findall(r"^tollway_credits_leased (\S+)$", page, re.MULTILINE)
    return float(value)


def be_busy(customer: Customer, charged: list[int]) -> None:
    """Until some of the account's credit is leased."""
    deadline = time.monotonic() + 20
    with ThreadPoolExecutor(12) as clients:
        while not leased_here(customer.server):
            assert time.monotonic() < deadline, "nothing is leased"
            for reply in clients.map(short_chat, [customer] * 12):
                charged.append(consumed(reply))


def short_chat(customer: Customer) -> Reply:
    return customer.chat(max_tokens=16, user=json.dumps({"chunks": 1, "input_tokens": 9}))


def consumed(reply: Reply) -> int:
    assert reply.status == 200, reply.body
    return int(reply.header("x-credits-consumed") or "")


def test_credit_that_a_stopped_replica_has_leased_is_503_elsewhere_until_it_gives_it_back(
    replicas: tuple[TollwayServer, TollwayServer],
    upstream: FakeUpstream,
    postgres: PostgresServer,
    database: str,
) -> None:
    one, two = replicas
    customer = a_customer(one, credits=CREDITS)
    there = replace(customer, server=two)
    charged: list[int] = []
    paced = json.dumps({"chunks": 30, "pace_ms": 100, "input_tokens": 9})
    with customer.begin_chat(stream=True, max_tokens=30, user=paced) as streaming:
        assert streaming.read_head().status == 200
        be_busy(customer, charged)
        one.signal(signal.SIGSTOP)
        try:
            time.sleep(0.2)  # what it had asked of the database ends
            with postgres.connect(database) as connection:
                row = connection.execute(
                    "SELECT balance - held, (SELECT sum(amount)::bigint FROM credit_leases)"
                    " FROM accounts WHERE id = %s",
                    (customer.account_id,),
                ).fetchone()
            assert row is not None
            free, leased = int(str(row[0])), int(str(row[1]))
            assert leased > 0
            # More than is free, and no more than there is.
            dear = {"max_tokens": free // 2, "user": json.dumps({"chunks": 1, "input_tokens": 9})}
            sent, began = len(upstream.exchanges), time.monotonic()
            refused = there.chat(**dear)
            took = time.monotonic() - began
        finally:
            one.signal(signal.SIGCONT)
        eventually(lambda: _paid(there.chat(**dear), charged), 10.0)
        assert streaming.read_events()[-1].data == "[DONE]"

    assert refused.status == 503
    assert "leased" in refused.json()["error"]["message"]
    assert refused.header("retry-after") is not None
    assert took < 5.0
    assert len(upstream.exchanges) == sent + 1  # only the one that was paid
    charged.append(9 + 2 * 30)
    eventually(lambda: there.available == CREDITS - sum(charged), 10.0)
    assert there.balance == CREDITS - sum(charged)


def test_what_an_account_cannot_pay_late_is_not_held_against_the_upstream(
    replicas: tuple[TollwayServer, TollwayServer],
    upstream: FakeUpstream,
    postgres: PostgresServer,
    database: str,
) -> None:
    one, _ = replicas
    # Each has one request, so that none has credit on lease.
    first, second, third, other = (a_customer(one, credits=CREDITS) for _ in range(4))
    upstream.answer(reply("It fell in a storm.").delayed(5), times=3)
    with (
        postgres.connect(database) as connection,
        first.begin_chat() as of_first,
        second.begin_chat() as of_second,
        third.begin_chat() as of_third,
    ):
        holds = "SELECT instance FROM holds WHERE state = 'open'"
        eventually(lambda: len(connection.execute(holds).fetchall()) == 3, 4.0)
        one.signal(signal.SIGSTOP)
        try:
            (instance,) = connection.execute(holds).fetchall()[0]
            connection.execute("SELECT expire_holds(%s)", (instance,))
            for customer in (first, second, third):
                account = customer.account_id
                one.operate("credit adjust", account=account, amount=-CREDITS, reason="spent")
        finally:
            one.signal(signal.SIGCONT)
        replies = [client.read_reply() for client in (of_first, of_second, of_third)]

    assert [consumed(told) for told in replies] == [0, 0, 0]
    eventually(lambda: short_chat(other).status == 200, 10.0)


def _paid(reply: Reply, charged: list[int]) -> bool:
    if reply.status == 200:
        charged.append(consumed(reply))
    return reply.status == 200

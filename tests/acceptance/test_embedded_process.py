"""The embedded model's process: it comes back when it dies, it takes no money for what it did not
give, and it never outlives the server."""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest
from tests.acceptance.conftest import EMBEDDED_MODEL
from tests.support.builders import message
from tests.support.customer import Customer, a_customer
from tests.support.http import RawClient
from tests.support.model import put_model_into
from tests.support.server import TollwayServer

pytestmark = pytest.mark.model

STORY = [message("Tell me a very long story about every bridge of the river.")]
READY_SECONDS_MAX = 30.0
SECOND_START_SECONDS_MAX = 2.0


def children(server: TollwayServer) -> list[psutil.Process]:
    return psutil.Process(server.pid).children(recursive=True)


def assert_ended(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert processes
    assert alive == []


def status_of(server: TollwayServer, path: str) -> int:
    with RawClient("127.0.0.1", server.port) as client:
        client.request("GET", path)
        return client.read_reply().status


def wait_for_health(port: int) -> None:
    deadline = time.monotonic() + READY_SECONDS_MAX
    while time.monotonic() < deadline:
        try:
            with RawClient("127.0.0.1", port) as client:
                client.request("GET", "/healthz")
                assert client.read_reply().status == 200
            return
        except ConnectionError:
            time.sleep(0.01)
    raise AssertionError(f"nothing answers on port {port}")


def wait_until_ready(server: TollwayServer) -> None:
    deadline = time.monotonic() + READY_SECONDS_MAX
    while status_of(server, "/readyz") != 200:
        assert time.monotonic() < deadline, server.stderr
        time.sleep(0.05)


def kill_the_model(server: TollwayServer) -> list[psutil.Process]:
    killed = children(server)
    for process in killed:
        process.kill()
    return killed


def wait_for_another_model(server: TollwayServer, killed: list[psutil.Process]) -> None:
    assert_ended(killed)  # the server has seen it, too: until then it is ready
    wait_until_ready(server)


@pytest.fixture(autouse=True)
def ready(embedded_server: TollwayServer) -> None:
    wait_until_ready(embedded_server)


def test_a_stream_whose_model_dies_ends_with_an_error_and_costs_what_was_received(
    embedded_server: TollwayServer, embedded_customer: Customer
) -> None:
    with embedded_customer.begin_chat(messages=STORY, stream=True, max_tokens=2000) as client:
        head = client.read_head()
        begun = client.read_events(6)
        killed = kill_the_model(embedded_server)
        *texts, comment, error = [*begun, *client.read_events()]
    wait_for_another_model(embedded_server, killed)

    assert error.json()["error"]["code"] == "upstream_error"
    receipt = embedded_customer.receipt(head.header("x-request-id") or "")
    assert receipt["status"] == "failed"
    received = sum(1 for e in texts if e.json()["choices"][0]["delta"].get("content"))
    assert receipt["usage"]["completion_tokens"] == received
    assert receipt["credits"]["consumed"] > 0
    assert comment.comment == (
        f"credits consumed={receipt['credits']['consumed']} "
        f"remaining={receipt['credits']['remaining']}"
    )
    assert embedded_customer.chat(max_tokens=4).status == 200


def test_a_plain_request_whose_model_dies_gets_a_502_and_costs_nothing(
    embedded_server: TollwayServer, embedded_customer: Customer
) -> None:
    with embedded_customer.begin_chat(messages=STORY, max_tokens=2000) as client:
        time.sleep(0.3)
        killed = kill_the_model(embedded_server)
        reply = client.read_reply()
    wait_for_another_model(embedded_server, killed)

    assert reply.status == 502
    assert reply.json()["error"]["code"] == "upstream_error"
    assert reply.header("X-Credits-Consumed") == "0"
    assert embedded_customer.balance == 100_000
    assert embedded_customer.chat(max_tokens=4).status == 200


def test_a_client_that_leaves_frees_the_model_for_the_next_one(
    embedded_customer: Customer,
) -> None:
    left = [
        embedded_customer.begin_chat(messages=STORY, max_tokens=2000, stream=True) for _ in range(4)
    ]
    for client in left:
        client.read_head()
        client.close()

    began = time.monotonic()
    assert embedded_customer.chat(max_tokens=4).status == 200
    assert time.monotonic() - began < 10


def test_a_second_start_answers_within_two_seconds(embedded_data_dir: Path) -> None:
    with TollwayServer(embedded_data_dir) as first:
        port = first.port

    server = TollwayServer(embedded_data_dir, arguments=["--port", str(port)])
    began = time.monotonic()
    server.launch()
    wait_for_health(port)
    elapsed = time.monotonic() - began
    server.stop()

    assert elapsed < SECOND_START_SECONDS_MAX


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_and_its_model(embedded_data_dir: Path, number: int) -> None:
    with TollwayServer(embedded_data_dir) as server:
        model = children(server)

        # To the whole group: a terminal does that on Ctrl-C, and systemd when it stops a service.
        os.killpg(server.pid, number)

        assert server.wait(10) == 0
        assert_ended(model)
        assert server.stderr == ""


def test_the_model_does_not_outlive_a_killed_server(embedded_data_dir: Path) -> None:
    server = TollwayServer(embedded_data_dir)
    server.start()
    model = children(server)

    server.kill()

    assert_ended(model)


def test_a_full_queue_gets_a_503_that_says_when_to_come_back(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    put_model_into(data_dir)
    with TollwayServer(data_dir, "[embedded]\nparallel = 1\nqueue_length = 0\n") as server:
        customer = a_customer(server, model=EMBEDDED_MODEL)
        with customer.begin_chat(messages=STORY, stream=True, max_tokens=2000) as running:
            running.read_head()
            reply = customer.chat(max_tokens=4)

    assert reply.status == 503
    assert reply.json()["error"]["code"] == "overloaded"
    assert 1 <= int(reply.header("Retry-After") or "") <= 60


def test_ones_own_model_takes_one_line(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    put_model_into(data_dir)
    (own,) = (data_dir / "models").iterdir()
    own.rename(tmp_path / "mine.gguf")

    with TollwayServer(data_dir, 'embedded.gguf = "mine.gguf"\n') as server:
        customer = a_customer(server, model="local/mine")
        reply = customer.chat(max_tokens=4)

    assert reply.status == 200
    assert reply.json()["model"] == "local/mine"


SPARE = """
[embedded]
parallel = 1
queue_length = 0

[[upstreams]]
name = "gone"
base_url = "http://127.0.0.1:1/v1"

[[models]]
id = "acme/spare"
tier = "budget"
upstreams = [{ name = "gone" }, { name = "embedded", priority = 1 }]

[[models]]
id = "acme/first"
tier = "budget"
upstreams = [{ name = "embedded" }, { name = "gone", priority = 1 }]
"""


def test_it_takes_part_among_several_upstreams_like_any_other(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    put_model_into(data_dir)
    with TollwayServer(data_dir, SPARE) as server:
        customer = a_customer(server, model="acme/spare")
        served = customer.chat(max_tokens=4)
        with customer.begin_chat(messages=STORY, stream=True, max_tokens=2000) as running:
            running.read_head()
            refused = customer.of("acme/first").chat(max_tokens=4)
        listed = {one["name"]: one for one in server.operate("upstream list")["data"]}

    assert served.status == 200
    assert customer.model == served.json()["model"]
    assert refused.status == 503  # its only place was taken, and the other is not there
    assert listed["embedded"]["condition"] == "serving"


def test_what_it_served_as_a_spare_has_both_on_its_receipt(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    put_model_into(data_dir)
    with TollwayServer(data_dir, SPARE) as server:
        customer = a_customer(server, model="acme/spare")
        receipt = customer.receipt_of(customer.chat(max_tokens=4, stream=True))

    assert receipt["attempts"] == [
        {"upstream": "gone", "status": None, "error": "unavailable"},
        {"upstream": "embedded", "status": 200},
    ]

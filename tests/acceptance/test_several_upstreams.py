"""A model with several upstreams: its users never notice which one answered, was slow or died."""

import concurrent.futures
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.acceptance.conftest import assert_ledger_is_whole
from tests.support.answers import cut, hang, openai_error, reply, stream, usage
from tests.support.builders import message
from tests.support.customer import Customer, a_customer, eventually
from tests.support.fake_upstream import FakeUpstream
from tests.support.http import RawClient
from tests.support.server import TollwayServer

CONFIG = """
[limits]
requests_per_minute = 100000
concurrent_requests = 1000

[tiers.parrot]
prompt_rate = 1000000
completion_rate = 2000000

[[upstreams]]
name = "gpu-1"
base_url = "{first}"
first_byte_seconds = 1
circuit_failures = 0

[[upstreams]]
name = "gpu-2"
base_url = "{second}"

[[upstreams]]
name = "narrow"
base_url = "{second}"
concurrent_requests = 2
queue_length = 2
queue_seconds = 20

[[upstreams]]
name = "checked"
base_url = "{first}"
health_path = "/health"
health_seconds = 0.1

[[upstreams]]
name = "hasty"
base_url = "{second}"

[[upstreams]]
name = "fragile"
base_url = "{first}"
circuit_failures = 2

[[upstreams]]
name = "liar"
base_url = "{first}"

[[models]]
id = "acme/tiered"
tier = "parrot"
context_length = 10000
upstreams = [
  {{ name = "gpu-1", model = "first" }},
  {{ name = "gpu-2", model = "second", priority = 1 }},
]

[[models]]
id = "acme/narrow"
tier = "parrot"
context_length = 10000
upstreams = [{{ name = "narrow" }}]

[[models]]
id = "acme/checked"
tier = "parrot"
context_length = 10000
upstreams = [{{ name = "checked" }}]

[[models]]
id = "acme/hasty"
tier = "parrot"
context_length = 10000
upstreams = [{{ name = "hasty", first_byte_seconds = 0.2 }}]

[[models]]
id = "acme/fragile"
tier = "parrot"
context_length = 10000
upstreams = [{{ name = "fragile" }}, {{ name = "gpu-2", priority = 1 }}]

[[models]]
id = "acme/liar"
tier = "parrot"
context_length = 10000
upstreams = [{{ name = "liar" }}, {{ name = "gpu-2", priority = 1 }}]

[[models]]
id = "acme/sticky"
tier = "parrot"
context_length = 10000
sticky = "prefix"
upstreams = [{{ name = "gpu-1", model = "first" }}, {{ name = "gpu-2", model = "second" }}]
"""


class House:
    def __init__(self, server: TollwayServer, first: FakeUpstream, second: FakeUpstream) -> None:
        self.server = server
        self.first = first
        self.second = second

    def mend(self) -> None:
        for upstream in (self.first, self.second):
            upstream.forget_answers()
        self.first.answer(openai_error(200, "well"), path="/health", times=None)

    def customer(self, model: str) -> Customer:
        return a_customer(self.server, model=model)

    def get(self, path: str) -> Any:
        with RawClient("127.0.0.1", self.server.port, timeout_seconds=5) as client:
            client.request("GET", path, None)
            return client.read_reply()

    def metric(self, name: str, **labels: str) -> float:
        page = self.get("/metrics").body.decode()
        return next(
            sample.value
            for family in text_string_to_metric_families(page)
            for sample in family.samples
            if sample.name == name and sample.labels == labels
        )

    def upstream(self, name: str) -> dict[str, Any]:
        listed = self.server.operate("upstream list")["data"]
        return next(one for one in listed if one["name"] == name)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with FakeUpstream() as first, FakeUpstream() as second:
        config = CONFIG.format(first=first.base_url, second=second.base_url)
        data_dir: Path = tmp_path_factory.mktemp("tollway") / "data"
        with TollwayServer(data_dir, config) as server:
            house = House(server, first, second)
            house.mend()
            yield house
            assert_ledger_is_whole(server)


@pytest.fixture
def house(running: House) -> Iterator[House]:
    yield running
    running.mend()


# --- another upstream -----------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
def test_another_upstream_serves_what_the_first_fails_and_the_receipt_lists_both(
    house: House, streamed: bool
) -> None:
    customer = house.customer("acme/tiered")
    house.first.answer(openai_error(502, "No."), model="first")

    answered = customer.chat(stream=streamed)

    assert answered.status == 200
    request_id = answered.header("X-Request-Id")
    receipt = customer.receipt(str(request_id))
    assert receipt["attempts"] == [
        {"upstream": "gpu-1", "status": 502, "error": "upstream_error"},
        {"upstream": "gpu-2", "status": 200},
    ]
    assert (receipt["upstream"], receipt["status"]) == ("gpu-2", "completed")
    for upstream in (house.first, house.second):
        chats = [one for one in upstream.exchanges if one.header("x-request-id") == request_id]
        assert len(chats) == 1
    told = receipt["usage"]
    cost = told["prompt_tokens"] + 2 * told["completion_tokens"]
    assert receipt["credits"]["consumed"] == cost == 100_000 - customer.balance


def test_one_that_does_not_answer_in_time_is_made_good_by_another(house: House) -> None:
    customer = house.customer("acme/tiered")
    house.first.answer(stream([hang()]).hang_at(0), model="first")

    answered = customer.chat(stream=True)

    assert answered.status == 200
    receipt = customer.receipt(str(answered.header("X-Request-Id")))
    assert [one["upstream"] for one in receipt["attempts"]] == ["gpu-1", "gpu-2"]


def test_a_whole_reply_that_breaks_off_is_asked_for_elsewhere_and_charged_once(
    house: House,
) -> None:
    customer = house.customer("acme/tiered")
    house.first.answer(reply("a b c d e f").cut_at(120), model="first")
    house.second.answer(reply("Hello there", input_tokens=7), model="second")

    answered = customer.chat()

    assert answered.json()["choices"][0]["message"]["content"] == "Hello there"
    assert answered.header("X-Credits-Consumed") == str(7 + 2 * 2)
    assert customer.balance == 100_000 - 11


def test_a_stream_that_breaks_off_after_its_first_byte_is_not(house: House) -> None:
    customer = house.customer("acme/tiered")
    asked = len(house.second.exchanges)
    house.first.answer(stream(["a", "b", cut()]), model="first")

    answered = customer.chat(stream=True)

    assert b'"error"' in answered.body
    assert len(house.second.exchanges) == asked


@pytest.mark.parametrize("status", [401, 402, 403, 404])
def test_what_the_operator_must_mend_is_served_by_another_and_raises_an_alarm(
    house: House, status: int
) -> None:
    customer = house.customer("acme/tiered")
    house.first.answer(openai_error(status, "sk-secret"), model="first")

    answered = customer.chat()

    assert answered.status == 200
    alarm = "tollway_upstream_refusals_total"
    assert house.metric(alarm, upstream="gpu-1", status=str(status)) == 1
    eventually(lambda: f"upstream gpu-1 answered {status}" in house.server.stderr, 10.0)


def test_a_wrong_request_is_the_clients_and_asked_once(house: House) -> None:
    customer = house.customer("acme/tiered")
    asked = len(house.second.exchanges)
    house.first.answer(openai_error(400, "temperature"), model="first")

    assert customer.chat().status == 400
    assert len(house.second.exchanges) == asked


# --- what speaks against one ----------------------------------------------------------------------


def test_a_circuit_opens_is_seen_everywhere_and_closes_by_one_probe(house: House) -> None:
    customer = house.customer("acme/fragile")
    house.first.answer(openai_error(502, "No."), model="acme/fragile", times=None)
    for _ in range(4):
        assert customer.chat().status == 200

    listed = house.upstream("fragile")

    assert listed["condition"] in ("open", "probing")
    assert listed["why"]
    assert listed["circuitOpened"] == 1
    shown = {"upstream": "fragile", "condition": "serving"}
    assert house.metric("tollway_upstream_condition", **shown) == 0
    assert house.metric("tollway_upstream_circuit_opened_total", upstream="fragile") == 1
    assert house.metric("tollway_tries_again_total", model="acme/fragile") >= 2
    eventually(lambda: "upstream fragile: it failed 2 times in a row" in house.server.stderr, 10.0)
    assert house.get("/readyz").status == 200  # another serves the model

    house.first.forget_answers()
    eventually(lambda: customer.chat().status == 200 and house.upstream("fragile")["why"] == "", 20)
    assert house.upstream("fragile")["condition"] == "serving"
    said = house.server.command("upstream", "list")
    assert "fragile\tserving\t" in said.stdout


def test_a_model_none_of_whose_upstreams_may_be_asked_makes_the_server_unready(
    house: House,
) -> None:
    customer = house.customer("acme/checked")
    eventually(lambda: house.get("/readyz").status == 200, 10)
    assert customer.chat().status == 200
    house.first.forget_answers()
    house.first.answer(openai_error(503, "ill"), path="/health", times=None)

    eventually(lambda: house.get("/readyz").status == 503, 10)
    unready = house.get("/readyz").json()
    refused = customer.chat()
    listed = house.upstream("checked")

    assert unready["reasons"] == [
        "model acme/checked: upstream checked is not ready, its health checks fail"
    ]
    assert (refused.status, refused.json()["error"]["code"]) == (503, "unavailable")
    assert "its health checks fail" in refused.json()["error"]["message"]
    assert customer.balance == customer.available
    assert (listed["condition"], listed["ready"]) == ("unhealthy", False)

    house.mend()
    eventually(lambda: house.get("/readyz").status == 200, 10)
    assert customer.chat().status == 200


def test_one_that_reports_beyond_its_cap_is_set_aside_and_another_serves(house: House) -> None:
    customer = house.customer("acme/liar")
    hello = [message("Hello!")]
    house.first.answer(reply("a b", usage=usage(9, 5000)), model="acme/liar", times=3)
    for _ in range(3):
        assert customer.chat(messages=hello, max_tokens=50).status == 200
    asked = len(house.first.exchanges)

    answered = customer.chat(messages=hello, max_tokens=50)

    assert answered.status == 200
    chats = [one for one in house.first.exchanges[asked:] if one.path.endswith("/completions")]
    assert chats == []
    assert house.upstream("liar")["condition"] == "set aside"


# --- places ---------------------------------------------------------------------------------------


def test_an_upstream_runs_no_more_than_it_may_some_wait_and_the_rest_are_told_when(
    house: House,
) -> None:
    customer = house.customer("acme/narrow")
    house.second.answer(reply("a").delayed(1.5), model="acme/narrow", times=None)
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        running = [threads.submit(customer.chat) for _ in range(8)]
        eventually(lambda: house.upstream("narrow")["waiting"] == 2, 10)
        listed = house.upstream("narrow")
        replies = [one.result() for one in running]

    assert (listed["inFlight"], listed["concurrentRequests"]) == (2, 2)
    statuses = sorted(one.status for one in replies)
    assert statuses == [200] * 4 + [503] * 4
    refused = next(one for one in replies if one.status == 503)
    assert refused.json()["error"]["code"] == "overloaded"
    assert refused.header("Retry-After") == "5"
    assert house.upstream("narrow")["inFlight"] == 0
    spent = sum(int(one.header("X-Credits-Consumed") or 0) for one in replies)
    assert customer.balance == customer.available == 100_000 - spent


# --- deadlines and conversations ------------------------------------------------------------------


def test_a_model_may_have_deadlines_of_its_own(house: House) -> None:
    house.second.answer(reply("a").delayed(5), model="acme/hasty")
    refused = house.customer("acme/hasty").chat()
    assert refused.status == 504
    assert "did not answer within 0.2 s" in refused.json()["error"]["message"]


def test_a_conversation_stays_on_one_upstream_and_so_does_a_session(house: House) -> None:
    customer = house.customer("acme/sticky")
    by_content: dict[str, set[str]] = {}
    by_session: dict[str, set[str]] = {}
    for turn in range(3):
        for name in "abcdefgh":
            answered = customer.chat(messages=[message(name)] + [message("x")] * turn)
            by_content.setdefault(name, set()).add(upstream_of(customer, answered))
            headers = [("X-Session-Id", name)]
            body = customer.chat_fields(messages=[message(f"{name} {turn}")])
            answered = customer.post("/chat/completions", body, *headers)
            by_session.setdefault(name, set()).add(upstream_of(customer, answered))

    for homes in (by_content, by_session):
        assert all(len(of_one) == 1 for of_one in homes.values()), json.dumps(str(homes))
        assert len(set[str]().union(*homes.values())) == 2


def upstream_of(customer: Customer, answered: Any) -> str:
    return customer.receipt(str(answered.header("X-Request-Id")))["upstream"]

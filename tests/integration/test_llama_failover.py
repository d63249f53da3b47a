"""Two real llama.cpp servers behind one model, as two ordinary OpenAI-compatible upstreams. One is
killed under load: who had nothing of an answer gets one from the other, and nobody pays twice."""

import json
import secrets
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.support.builders import message
from tests.support.customer import Customer, a_customer, eventually
from tests.support.http import Reply
from tests.support.model import the_model
from tests.support.server import TollwayServer

pytestmark = pytest.mark.model

CLIENTS = 6
QUESTION = [message("What is the capital of France?")]
CONFIG = """
[limits]
other_requests_per_minute = 100000

[tiers.llama]
prompt_rate = 1000000
completion_rate = 2000000

[[upstreams]]
name = "llama-1"
base_url = "{0}/v1"
api_key = "env:LLAMA_KEY"

[[upstreams]]
name = "llama-2"
base_url = "{1}/v1"
api_key = "env:LLAMA_KEY"

[[models]]
id = "acme/llama"
tier = "llama"
context_length = 512
max_output_tokens = 64
upstreams = [{{ name = "llama-1" }}, {{ name = "llama-2" }}]
"""


class LlamaServer:
    """llama.cpp's server in a process of its own, as the embedded model's runner starts it."""

    def __init__(self, key: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tollway.upstreams.embedded.runner"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        settings = {
            "model_path": str(the_model()),
            "model_alias": "acme/llama",
            "context_length": 512,
            "parallel": CLIENTS,
            "threads": 1,
            "chat_template": None,
            "api_key": key,
        }
        self._process.stdin.write(json.dumps(settings).encode() + b"\n")
        self._process.stdin.flush()  # and left open: its end would tell the server to go
        self.address: str = json.loads(self._process.stdout.readline())["address"]

    def __enter__(self) -> "LlamaServer":
        return self

    def __exit__(self, *raised: object) -> None:
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@dataclass
class Answered:
    streamed: bool
    reply: Reply

    @property
    def ended_well(self) -> bool:
        return not self.streamed or self.reply.events[-1].data == "[DONE]"

    @property
    def request_id(self) -> str:
        return self.reply.header("x-request-id") or ""


class Load:
    """Clients that ask one after the other, half of them for streams, until they are told to
    stop."""

    def __init__(self, customer: Customer) -> None:
        self.answered: list[Answered] = []
        self._customer = customer
        self._upstreams: dict[str, str] = {}
        self._over = threading.Event()
        self._clients = [
            threading.Thread(target=self._keep_asking, args=(number % 2 == 0,))
            for number in range(CLIENTS)
        ]

    def __enter__(self) -> "Load":
        for client in self._clients:
            client.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._over.set()
        for client in self._clients:
            client.join()

    def used(self, since: int = 0) -> set[str]:
        return {self._upstream_of(one.request_id) for one in self.answered[since:]}

    def _upstream_of(self, request_id: str) -> str:
        """Asked once: the models need the processor."""
        if request_id not in self._upstreams:
            self._upstreams[request_id] = self._customer.receipt(request_id)["upstream"]
        return self._upstreams[request_id]

    def _keep_asking(self, streamed: bool) -> None:
        while not self._over.is_set():
            reply = self._customer.chat(
                messages=QUESTION, max_tokens=24, temperature=0, stream=streamed
            )
            self.answered.append(Answered(streamed, reply))


@pytest.fixture
def key() -> str:
    return secrets.token_hex(16)


@pytest.fixture
def llamas(key: str) -> Iterator[list[LlamaServer]]:
    with ExitStack() as stack:
        yield [stack.enter_context(LlamaServer(key)) for _ in range(2)]


@pytest.fixture
def server(llamas: list[LlamaServer], key: str, tmp_path: Path) -> Iterator[TollwayServer]:
    config = CONFIG.format(*(llama.address for llama in llamas))
    with TollwayServer(tmp_path / "data", config, env={"LLAMA_KEY": key}) as running:
        yield running


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_one_of_two_llama_servers_is_killed_under_load_and_no_request_fails_for_it(
    server: TollwayServer, llamas: list[LlamaServer], key: str
) -> None:
    customer = a_customer(
        server, model="acme/llama", credits=10_000_000, limits={"requests_per_minute": 100_000}
    )

    with Load(customer) as load:
        eventually(lambda: load.used() == {"llama-1", "llama-2"}, 120.0)
        llamas[0].kill()
        killed_at = len(load.answered)
        eventually(lambda: len(load.answered) >= killed_at + 3 * CLIENTS, 120.0)
        # What is in its place has another address, which the running server is told.
        with LlamaServer(key) as successor:
            assert server.config is not None
            server.config.write_text(CONFIG.format(successor.address, llamas[1].address))
            assert server.operate("reload")["changes"]
            replaced_at = len(load.answered)
            eventually(lambda: "llama-1" in load.used(since=replaced_at + CLIENTS), 120.0)
    answered = load.answered

    # None failed before its first byte; a stream that had begun at the one that died was told so.
    assert {one.reply.status for one in answered} == {200}
    cut = [one for one in answered if not one.ended_well]
    assert len(cut) <= CLIENTS  # those that ran there as it died, twice: the successor goes too
    assert {one.reply.events[-1].json()["error"]["code"] for one in cut} <= {"upstream_error"}
    receipts = [customer.receipt(one.request_id) for one in answered]
    tried_again = [receipt for receipt in receipts if len(receipt["attempts"]) > 1]
    assert tried_again
    assert {receipt["upstream"] for receipt in tried_again} == {"llama-2"}
    for one, receipt in zip(answered, receipts, strict=True):
        usage = receipt["usage"]
        cost = usage["prompt_tokens"] + 2 * usage["completion_tokens"]
        assert receipt["status"] == ("completed" if one.ended_well else "failed")
        assert receipt["credits"]["consumed"] == cost <= receipt["credits"]["reserved"]
    # Each was charged once, and nothing is held any more.
    charges = Counter(entry["requestId"] for entry in all_charges(customer))
    assert set(charges.values()) == {1}
    assert set(charges) == {receipt["id"] for receipt in receipts if receipt["credits"]["consumed"]}
    assert customer.available == customer.balance
    assert server.command("ledger", "verify").status == 0


def all_charges(customer: Customer) -> Iterator[dict[str, object]]:
    page = 1
    while True:
        found = customer.get(f"/credit-transactions?page={page}&limit=100").json()
        yield from (entry for entry in found["data"] if entry["type"] == "charge")
        if not found["pagination"]["hasMore"]:
            return
        page += 1

"""Servers for the acceptance tests: each file has one of its own in front of a fake upstream, and
those with the embedded model share one. Tests keep apart by their accounts. When a file is done its
ledger is verified.

A file changes its server's configuration by a fixture `settings` of its own: TOML that goes before
the models. `own_settings` is the same for the server that a test has for itself.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.customer import Customer, a_customer
from tests.support.fake_upstream import FakeUpstream
from tests.support.model import put_model_into
from tests.support.server import TollwayServer, parrot

EMBEDDED_MODEL = "tollway/smollm2-135m"

MODELS = (
    parrot('[{{ name = "gpu-1", model = "parrot-upstream" }}]')
    + """
[tiers.free]
prompt_rate = 0
completion_rate = 0

[[upstreams]]
name = "gpu-1"
base_url = "{upstream}"
api_key = "env:GPU_1_KEY"
first_byte_seconds = 2
between_chunks_seconds = 2
circuit_failures = 0  # a file's tests fail it many times in a row

[[upstreams]]
name = "patient"
base_url = "{upstream}"

[[upstreams]]
name = "limited"
base_url = "{upstream}"

[[upstreams]]
name = "gone"
base_url = "http://127.0.0.1:1/v1"

[[models]]
id = "acme/plain"
prompt_rate = 700
completion_rate = 4000
context_length = 4096
max_output_tokens = 512
supported_parameters = ["temperature"]
confidential = true
upstreams = [{{ name = "gpu-1", model = "plain-upstream" }}]

[[models]]
id = "acme/free"
tier = "free"
context_length = 4096
upstreams = [{{ name = "gpu-1", model = "free-upstream" }}]

[[models]]
id = "acme/slow"
tier = "parrot"
context_length = 4096
upstreams = [{{ name = "patient", model = "slow-upstream" }}]

[[models]]
id = "acme/limited"
tier = "parrot"
context_length = 4096
upstreams = [{{ name = "limited", model = "limited-upstream" }}]

[[models]]
id = "acme/gone"
tier = "parrot"
context_length = 4096
upstreams = [{{ name = "gone" }}]
"""
)

UPSTREAM_KEY = "sk-upstream-9f2c71"


@pytest.fixture(scope="module")
def settings() -> str:
    return "[limits]\nfailed_authentications_per_minute = 100000\n"


@pytest.fixture(scope="module")
def running_upstream() -> Iterator[FakeUpstream]:
    with FakeUpstream(models=("parrot-upstream",)) as running:
        yield running


@pytest.fixture(scope="module")
def server(
    running_upstream: FakeUpstream, settings: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TollwayServer]:
    config = settings + MODELS.format(upstream=running_upstream.base_url)
    data_dir = tmp_path_factory.mktemp("tollway") / "data"
    with TollwayServer(data_dir, config, env={"GPU_1_KEY": UPSTREAM_KEY}) as running:
        yield running
        assert_ledger_is_whole(running)
        assert UPSTREAM_KEY not in running.stdout + running.stderr


@pytest.fixture
def own_settings() -> str:
    return ""


@pytest.fixture
def own_server(
    running_upstream: FakeUpstream, own_settings: str, tmp_path: Path
) -> Iterator[TollwayServer]:
    """One that a test may stop and kill."""
    config = own_settings + MODELS.format(upstream=running_upstream.base_url)
    with TollwayServer(tmp_path / "data", config, env={"GPU_1_KEY": UPSTREAM_KEY}) as running:
        yield running
        if running.runs:
            assert_ledger_is_whole(running)


@pytest.fixture
def upstream(running_upstream: FakeUpstream) -> Iterator[FakeUpstream]:
    """The same for all tests of a file; what one did not use up is not the next one's."""
    yield running_upstream
    running_upstream.forget_answers()


@pytest.fixture
def customer(server: TollwayServer) -> Customer:
    return a_customer(server)


@pytest.fixture(scope="session")
def embedded_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TollwayServer]:
    """As the page has it: no configuration, the model that Tollway runs itself."""
    data_dir = tmp_path_factory.mktemp("tollway") / "data"
    put_model_into(data_dir)
    with TollwayServer(data_dir) as running:
        yield running
        assert_ledger_is_whole(running)


@pytest.fixture
def embedded_customer(embedded_server: TollwayServer) -> Customer:
    return a_customer(embedded_server, model=EMBEDDED_MODEL)


@pytest.fixture
def embedded_data_dir(tmp_path: Path) -> Path:
    """Of a server that is not there yet, with the model's file in it."""
    data_dir = tmp_path / "data"
    put_model_into(data_dir)
    return data_dir


def assert_ledger_is_whole(server: TollwayServer) -> None:
    """By the server itself, where it runs: a process would take longer than most of the tests."""
    if server.runs:
        assert server.operate("ledger verify") == {"data": []}
        return
    verified = server.command("ledger", "verify")
    assert verified.status == 0, verified.stdout + verified.stderr

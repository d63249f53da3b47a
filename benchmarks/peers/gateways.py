"""The peers, each in the leanest configuration that still is what one would run: one worker on one
core, nothing logged for a request, no retries, no cache. What a router of one model's servers
leaves out (tokens, prices, credit) is said in the table."""

import contextlib
import http.client
import json
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.environments import NEWER_PYTHON, NotHere, node_peer, python_peer
from benchmarks.gateways import (
    MODEL,
    Gateway,
    Upstream,
    direct,
    nginx,
    tollway,
    tollway_on_newer_python,
)
from benchmarks.processes import GATEWAY_CORE, NotStarted, free_port, running

PATH = "/v1/chat/completions"
KEY = "sk-bench"
HERE = Path(__file__).parent
START_SECONDS_MAX = 120.0

Start = Callable[[Path, Upstream, list[str]], AbstractContextManager[Gateway]]


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the table: `does` is what it does for a request beyond passing it on, in the
    configuration measured here."""

    title: str
    does: str
    start: Start


@contextlib.contextmanager
def vllm_router(folder: Path, upstream: Upstream, _: list[str]) -> Generator[Gateway]:
    program = [str(python_peer("vllm-router") / "vllm-router")]
    with _started("vllm-router", folder, [*program, *_router_options(upstream)], upstream) as it:
        yield it


@contextlib.contextmanager
def sglang_router(folder: Path, upstream: Upstream, _: list[str]) -> Generator[Gateway]:
    program = [str(python_peer("sglang-router") / "python"), "-m", "sglang_router.launch_router"]
    with _started("sglang-router", folder, [*program, *_router_options(upstream)], upstream) as it:
        yield it


@contextlib.contextmanager
def smg(folder: Path, upstream: Upstream, _: list[str]) -> Generator[Gateway]:
    program = [str(python_peer("smg") / "smg"), "launch", "--backend", "openai"]
    more = ["--history-backend", "none"]
    with _started("smg", folder, [*program, *_router_options(upstream), *more], upstream) as it:
        yield it


def _router_options(upstream: Upstream) -> list[str]:
    options = {
        "--worker-urls": f"http://127.0.0.1:{upstream.port}",
        "--host": "127.0.0.1",
        "--policy": "round_robin",
        "--log-level": "error",
        "--prometheus-host": "127.0.0.1",
        "--prometheus-port": str(free_port()),
    }
    words = [word for option in options.items() for word in option]
    return [*words, "--disable-retries", "--disable-circuit-breaker"]


ROLTER = """\
[server]
host = "127.0.0.1"
port = {port}

[[providers]]
name = "bench"
kind = "openai_compatible"
api_base = "http://127.0.0.1:{upstream_port}"

[[routes]]
model = "{model}"
strategy = "round_robin"
[[routes.targets]]
provider = "bench"
model = "{model}"

[[virtual_keys]]
key = "{key}"
name = "bench"
"""


@contextlib.contextmanager
def rolter(folder: Path, upstream: Upstream, _: list[str]) -> Generator[Gateway]:
    port, config = free_port(), folder / "rolter.toml"
    config.write_text(ROLTER.format(port=port, upstream_port=upstream.port, model=MODEL, key=KEY))
    command = [str(python_peer("rolter") / "rolter"), "gateway", "-c", str(config)]
    with _started("rolter", folder, command, upstream, port, env={"RUST_LOG": "error"}) as it:
        yield it


LITELLM = """\
model_list:
  - model_name: {model}
    litellm_params:
      model: openai/{model}
      api_base: http://127.0.0.1:{upstream_port}/v1
      api_key: none
general_settings: {{master_key: {key}}}
litellm_settings: {{telemetry: false}}
"""


@contextlib.contextmanager
def litellm(folder: Path, upstream: Upstream, _: list[str]) -> Generator[Gateway]:
    port, config = free_port(), folder / "litellm.yaml"
    config.write_text(LITELLM.format(upstream_port=upstream.port, model=MODEL, key=KEY))
    command = [str(python_peer("litellm") / "litellm"), "--config", str(config)]
    more = ["--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    # Its price list is the one that it ships, and nothing is reported to anybody.
    env = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
    with _started("LiteLLM", folder, [*command, *more], upstream, port, env=env) as it:
        yield it


@contextlib.contextmanager
def portkey(folder: Path, upstream: Upstream, _: list[str]) -> Generator[Gateway]:
    port = free_port()
    server = node_peer("portkey") / "@portkey-ai/gateway/build/start-server.js"
    # It would listen on every address of the machine.
    node = ["node", "--require", str(HERE / "portkey/listen-here.cjs")]
    command = [*node, str(server), f"--port={port}", "--headless"]
    headers = (
        ("x-portkey-provider", "openai"),
        ("x-portkey-custom-host", f"http://127.0.0.1:{upstream.port}/v1"),
    )
    env = {"NODE_ENV": "production"}
    with _started("Portkey", folder, command, upstream, port, env=env, headers=headers) as it:
        yield it


ENTRIES: Mapping[str, Entry] = {
    "direct": Entry(
        "no gateway",
        "nothing: the load straight at the model's server",
        lambda folder, upstream, program: direct(upstream),
    ),
    "nginx": Entry(
        "nginx",
        "nothing; one worker, kept connections, no log",
        lambda folder, upstream, program: nginx(folder, upstream),
    ),
    "tollway": Entry(
        "Tollway",
        "validation, token, scope, rate, hold, charge on disk, receipt, metrics, access log",
        tollway,
    ),
    "newer": Entry(
        f"Tollway on {NEWER_PYTHON}",
        "the same; this clone's sources",
        lambda folder, upstream, program: tollway_on_newer_python(folder, upstream),
    ),
    "vllm-router": Entry("vllm-router", "round robin over one worker, metrics", vllm_router),
    "sglang-router": Entry("sglang-router", "round robin over one worker, metrics", sglang_router),
    "rolter": Entry("rolter", "a virtual key, a route; no budget (that needs Redis)", rolter),
    "smg": Entry("smg", "its OpenAI backend, round robin, metrics; no history", smg),
    "portkey": Entry("Portkey gateway", "a provider by header; nothing configured", portkey),
    "litellm": Entry("LiteLLM proxy", "the master key; no virtual keys, no budgets", litellm),
}


@contextlib.contextmanager
def _started(
    title: str,
    folder: Path,
    command: list[str],
    upstream: Upstream,
    port: int | None = None,
    *,
    env: Mapping[str, str] | None = None,
    headers: tuple[tuple[str, str], ...] = (),
) -> Generator[Gateway]:
    """From the moment it answers a request: some listen before they can."""
    if port is None:
        port = free_port()
        command = [*command, "--port", str(port)]
    log = folder / f"{title}.log"
    with contextlib.ExitStack() as stack:
        program = running(
            command, core=GATEWAY_CORE, port=port, log=log, seconds=START_SECONDS_MAX, env=env
        )
        try:
            process = stack.enter_context(program)
        except NotStarted as error:
            raise NotHere(f"it does not start: {str(error).strip().splitlines()[-1]}") from None
        gateway = Gateway(title, process.pid, port, upstream, KEY, PATH, MODEL, headers)
        _wait_for_an_answer(gateway)
        yield gateway


def _wait_for_an_answer(gateway: Gateway) -> None:
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "Hello."}]})
    headers = {"authorization": f"Bearer {gateway.token}", "content-type": "application/json"}
    answered = "nothing"
    deadline = time.monotonic() + START_SECONDS_MAX
    while time.monotonic() < deadline:
        connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=10)
        with contextlib.suppress(OSError), contextlib.closing(connection):
            connection.request("POST", gateway.path, body, headers | dict(gateway.headers))
            answer = connection.getresponse()
            if answer.status == 200:
                return
            answered = f"{answer.status}: {answer.read(200)!r}"
        time.sleep(0.2)
    raise NotHere(f"it answers a request with {answered}")

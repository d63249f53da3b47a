"""The configuration changes while the server runs: no request is dropped, each keeps the price and
the upstream that it began with, and what is wrong is refused whole."""

import asyncio
import os
import pty
import re
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.acceptance.conftest import assert_ledger_is_whole
from tests.support.answers import pause, reply, stream
from tests.support.builders import message
from tests.support.customer import Customer, a_customer, eventually
from tests.support.fake_upstream import FakeUpstream
from tests.support.http import RawClient, Reply
from tests.support.server import TOLLWAY, Finished, TollwayServer, parrot, run_tollway

from tollway.api.admin.control import ControlServer

HELLO = [message("Hello!")]


@dataclass
class Installation:
    """A server whose file a test changes. `text` is what the file says, and `said_before` how much
    the server had said when the test began."""

    server: TollwayServer
    upstreams: list[FakeUpstream]
    text: str
    said_before: int

    @property
    def said(self) -> str:
        return self.server.stderr[self.said_before :]

    def wait_for_retired(self, upstreams: int) -> None:
        """Whoever takes some out waits for their end: the next test hears nothing of it."""
        eventually(lambda: self.said.count("runs nothing any more") == upstreams, 10.0)

    def write(self, *replacements: tuple[str, str]) -> None:
        """As an editor does: another file in its place."""
        for before, after in replacements:
            assert before in self.text, before
            self.text = self.text.replace(before, after)
        assert self.server.config is not None
        fresh = self.server.config.with_suffix(".new")
        fresh.write_text(self.text)
        fresh.rename(self.server.config)

    def reload(self, *replacements: tuple[str, str]) -> dict[str, Any]:
        """Before the server has looked at the file itself. Raises `Refused`."""
        self.write(*replacements)
        return self.server.operate("reload")

    def command(self, *replacements: tuple[str, str]) -> Finished:
        """The same by `tollway reload`, which may come too late to be the first."""
        self.write(*replacements)
        return self.server.command("reload")

    def customer(self) -> Customer:
        return a_customer(self.server, limits={"requests_per_minute": 100_000})

    def metric(self, name: str) -> float:
        with RawClient("127.0.0.1", self.server.port) as client:
            client.request("GET", "/metrics")
            page = client.read_reply().body.decode()
        found = re.search(rf"^{re.escape(name)} (\S+)$", page, re.MULTILINE)
        assert found is not None, name
        return float(found[1])


CONFIG = (
    parrot('[{{ name = "gpu-1", model = "parrot-1" }}]')
    + """
[limits]
requests_per_minute = 30
other_requests_per_minute = 100000

[[upstreams]]
name = "gpu-1"
base_url = "{0}"
api_key = "file:gpu-1.key"
"""
)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TollwayServer]:
    folder = tmp_path_factory.mktemp("tollway")
    _write_key(folder, "sk-first")
    with TollwayServer(folder / "data", CONFIG.format("http://127.0.0.1:1/v1")) as server:
        yield server
        assert_ledger_is_whole(server)


@pytest.fixture
def installed(running: TollwayServer) -> Iterator[Installation]:
    """The one server, which each test has with upstreams of its own and in the configuration that
    it started with."""
    with ExitStack() as stack:
        upstreams = [stack.enter_context(FakeUpstream()) for _ in range(2)]
        _write_key(running.data_dir.parent, "sk-first")
        text = CONFIG.format(upstreams[0].base_url)
        installation = Installation(running, upstreams, text, len(running.stderr))
        installation.reload()
        installation.wait_for_retired(1)
        installation.said_before = len(running.stderr)
        yield installation


def _write_key(folder: Path, key: str) -> None:
    file = folder / "gpu-1.key"
    file.touch(0o600)
    file.write_text(key)


def rates_of(customer: Customer, answered: Reply) -> tuple[int, int]:
    rates = customer.receipt_of(answered)["rates"]
    return rates["prompt"], rates["completion"]


# --- what changes ---------------------------------------------------------------------------------


def test_a_price_changes_from_the_next_request_on_and_a_running_one_keeps_its_own(
    installed: Installation,
) -> None:
    customer = installed.customer()
    installed.upstreams[0].answer(stream(["a", pause(1.5), "b"], input_tokens=9))
    with customer.begin_chat(stream=True, max_tokens=50) as client:
        running = client.read_head()
        client.read_events(2)

        done = installed.reload(("prompt_rate = 1000000", "prompt_rate = 3000000"))
        after = customer.chat(max_tokens=50)
        events = client.read_events()

    assert done["changes"] == ["models.acme/parrot.prompt_rate: 1000000 -> 3000000"]
    assert events[-1].data == "[DONE]"
    before = customer.receipt(running.header("x-request-id") or "")
    assert (before["rates"]["prompt"], before["credits"]["consumed"]) == (1_000_000, 9 + 2 * 2)
    assert rates_of(customer, after) == (3_000_000, 2_000_000)
    assert before["priceId"] != customer.receipt_of(after)["priceId"]


def test_an_upstream_that_is_taken_out_ends_what_it_runs_and_then_its_connections(
    installed: Installation,
) -> None:
    customer = installed.customer()
    old, new = installed.upstreams
    customer.chat(max_tokens=50)  # leaves a connection that is kept
    old.answer(stream(["a", pause(1.0), "b"], input_tokens=9))
    with customer.begin_chat(stream=True, max_tokens=50) as client:
        client.read_head()
        client.read_events(2)

        done = installed.reload(
            ('name = "gpu-1"\nbase_url', 'name = "gpu-2"\nbase_url'),
            (old.base_url, new.base_url),
            ('{ name = "gpu-1", model = "parrot-1" }', '{ name = "gpu-2", model = "parrot-2" }'),
        )
        after = customer.chat(max_tokens=50)
        asked_of_the_new = new.last.body["model"]
        events = client.read_events()

    removed, added, model = done["changes"]
    assert (removed, added) == ("upstreams.gpu-1: removed", "upstreams.gpu-2: added")
    assert re.fullmatch(r"models\.acme/parrot\.upstreams: .*gpu-1.* -> .*gpu-2.*", model)
    assert asked_of_the_new == "parrot-2"
    assert customer.receipt_of(after)["upstream"] == "gpu-2"
    assert events[-1].data == "[DONE]"
    assert old.ended().finished
    eventually(lambda: old.connections_open == 0, 5.0)
    eventually(
        lambda: "upstream gpu-1, which was taken out or changed, runs nothing" in installed.said,
        10.0,
    )


def test_an_upstream_that_has_not_changed_keeps_its_connections(installed: Installation) -> None:
    customer = installed.customer()
    customer.chat(max_tokens=50)

    installed.reload(("prompt_rate = 1000000", "prompt_rate = 3000000"))
    installed.reload(("requests_per_minute = 30", "requests_per_minute = 31"))
    customer.chat(max_tokens=50)

    assert installed.upstreams[0].connections_opened == 1


def test_a_model_comes_and_another_goes(installed: Installation) -> None:
    customer = installed.customer()
    installed.reload(('id = "acme/parrot"', 'id = "acme/macaw"'))

    assert [model["id"] for model in customer.get("/models").json()["data"]] == ["acme/macaw"]
    assert customer.of("acme/macaw").chat(max_tokens=50).status == 200
    assert customer.chat(max_tokens=50).status == 404
    listed = installed.server.command("model", "list").stdout
    assert "acme/macaw\t" in listed
    assert "acme/parrot\t" not in listed
    assert installed.server.command("account", "create", "new").status == 0


def test_limits_change(installed: Installation) -> None:
    customer = a_customer(installed.server)
    installed.reload(
        ("requests_per_minute = 30", "requests_per_minute = 2"),
        ("other_requests_per_minute = 100000", "other_requests_per_minute = 50"),
    )

    assert [customer.chat(max_tokens=50).status for _ in range(3)] == [200, 200, 429]
    assert customer.get("/models").header("x-ratelimit-limit-requests") == "50"
    assert customer.get("/accounts/me").json()["limits"]["requestsPerMinute"] == 2


def test_what_a_new_account_is_granted_changes(installed: Installation) -> None:
    installed.reload(("[limits]", "[limits]\nstarting_credits = 7"))

    made = installed.server.operate("account create", name="granted")

    assert made["creditBalance"] == 7


# --- who asks for it ------------------------------------------------------------------------------


def test_a_file_that_changes_is_taken_without_being_asked_for(installed: Installation) -> None:
    customer = installed.customer()
    installed.write(("completion_rate = 2000000", "completion_rate = 5000000"))

    eventually(lambda: "completion_rate: 2000000 -> 5000000" in installed.said, 10.0)

    assert rates_of(customer, customer.chat(max_tokens=50)) == (1_000_000, 5_000_000)


def test_a_key_that_changes_in_its_file_is_taken_and_not_shown(installed: Installation) -> None:
    customer = installed.customer()
    customer.chat(max_tokens=50)
    first = installed.upstreams[0].last.header("authorization")
    (installed.server.data_dir.parent / "gpu-1.key").write_text("sk-second")

    eventually(lambda: "upstreams.gpu-1.api_key: another one" in installed.said, 10.0)
    customer.chat(max_tokens=50)

    assert first == "Bearer sk-first"
    assert installed.upstreams[0].last.header("authorization") == "Bearer sk-second"
    installed.wait_for_retired(1)
    assert "sk-" not in installed.said + installed.server.stdout


def test_sighup_reloads(installed: Installation) -> None:
    installed.write(("prompt_rate = 1000000", "prompt_rate = 3000000"))
    installed.server.signal(signal.SIGHUP)

    eventually(lambda: "the configuration was reloaded: 1 change\n" in installed.said, 10.0)

    assert installed.customer().chat(max_tokens=50).status == 200


def test_a_server_in_a_terminal_goes_when_the_terminal_does(tmp_path: Path) -> None:
    config = tmp_path / "tollway.toml"
    (tmp_path / "gpu-1.key").write_text("sk-first")
    config.write_text(CONFIG.format("http://127.0.0.1:1/v1"))
    where = ["--config", str(config), "--data-dir", str(tmp_path / "data")]
    pid, terminal = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # who runs the tests may be under nohup
        os.execvp(TOLLWAY[0], [*TOLLWAY, "serve", "--port", "0", *where])  # noqa: S606
    shown = b""
    while b"Ctrl-C stops it." not in shown:
        shown += os.read(terminal, 4096)
    os.close(terminal)

    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


# --- what is refused ------------------------------------------------------------------------------


def test_a_bad_file_is_refused_whole_and_the_server_goes_on(installed: Installation) -> None:
    customer = installed.customer()
    reloaded = installed.metric('tollway_configuration_reloads_total{result="ok"}')

    done = installed.command(
        ("prompt_rate = 1000000", "prompt_rate = 3000000"),
        ("[[models]]\n", "[[models]]\nidd = 1\n"),
    )

    why = "models[0].idd: there is no such setting. Did you mean `id`?"
    assert (done.status, done.stdout) == (1, "")
    assert done.stderr == why + "\n"
    eventually(
        lambda: f"the configuration was refused, the running one stays: {why}" in installed.said,
        10.0,
    )
    assert rates_of(customer, customer.chat(max_tokens=50)) == (1_000_000, 2_000_000)
    assert installed.metric('tollway_configuration_reloads_total{result="refused"}') >= 1
    installed.reload(("idd = 1\n", ""))
    assert rates_of(customer, customer.chat(max_tokens=50)) == (3_000_000, 2_000_000)
    assert installed.metric('tollway_configuration_reloads_total{result="ok"}') == reloaded + 1
    assert installed.metric("tollway_configuration_reloaded_timestamp_seconds") > 1.7e9


def test_what_needs_a_restart_is_named_and_the_rest_is_taken(installed: Installation) -> None:
    done = installed.reload(
        ("[limits]", "[server]\ndrain_seconds = 7\n[limits]\nstarting_credits = 7")
    )

    assert done == {
        "file": str(installed.server.config),
        "changes": ["limits.starting_credits: 100000 -> 7"],
        "afterRestart": ["server.drain_seconds: 120.0 -> 7.0"],
    }
    # It waits for the restart still.
    again = installed.server.command("reload").stdout
    assert again == "server.drain_seconds: 120.0 -> 7.0 (after a restart)\n"
    eventually(
        lambda: "changes after a restart: server.drain_seconds: 120.0" in installed.said,
        10.0,
    )


def test_a_model_that_would_need_the_embedded_one_is_refused(installed: Installation) -> None:
    done = installed.command(
        (
            "[[models]]",
            '[[models]]\nid = "x"\ntier = "budget"\n'
            'upstreams = [{ name = "embedded" }]\n[[models]]',
        )
    )

    assert done.status == 1
    assert "the embedded model, which starts with the server alone" in done.stderr
    assert installed.customer().chat(max_tokens=50).status == 200


def test_where_nothing_has_changed_it_says_so(installed: Installation) -> None:
    assert installed.command().stdout == f"Nothing has changed in {installed.server.config}.\n"
    assert installed.reload() == {
        "file": str(installed.server.config),
        "changes": [],
        "afterRestart": [],
    }


class ServerOfBefore:
    """Takes commands as one did whose answers had no file in them."""

    async def execute(
        self, command: str, arguments: Mapping[str, object], *, actor: str
    ) -> dict[str, object]:
        return {"changes": [], "afterRestart": []}


async def test_a_server_that_is_older_than_the_command_is_understood(tmp_path: Path) -> None:
    server = ControlServer(tmp_path, ServerOfBefore())
    await server.start()

    done = await asyncio.to_thread(run_tollway, "reload", "--data-dir", str(tmp_path))
    await server.stop()

    assert (done.stdout, done.stderr) == ("Nothing has changed.\n", "")


def test_the_command_prints_what_changed(installed: Installation) -> None:
    printed = ""
    for rate in range(2, 12):  # the server may have looked at the file before the command did
        before = re.search(r"prompt_rate = \d+", installed.text)
        assert before is not None
        printed = installed.command((before[0], f"prompt_rate = {rate}000000")).stdout
        if not printed.startswith("Nothing has changed in "):
            break

    assert re.fullmatch(r"models\.acme/parrot\.prompt_rate: \d+000000 -> \d+000000\n", printed)


def test_without_a_server_there_is_nothing_to_reload(tmp_path: Path) -> None:
    done = run_tollway("reload", "--data-dir", str(tmp_path / "data"))

    assert done.status == 1
    assert done.stderr == (
        f"No server runs on {tmp_path / 'data'}. It reads its configuration when it starts.\n"
    )


def test_a_server_without_a_file_says_that_there_is_nothing_to_reload(
    embedded_server: TollwayServer,
) -> None:
    done = run_tollway("reload", "--data-dir", str(embedded_server.data_dir))

    assert done.status == 1
    assert "started without a configuration file" in done.stderr


# --- under load -----------------------------------------------------------------------------------


def test_no_request_is_dropped_and_none_mispriced_while_everything_changes_all_the_time(
    installed: Installation,
) -> None:
    """Eight clients, streamed and not, while prices and upstreams change forty times."""
    for upstream in installed.upstreams:
        upstream.answer(stream(["a"] * 3, pace_seconds=0.01, input_tokens=9), times=None)
    customer = a_customer(
        installed.server, credits=10_000_000, limits={"requests_per_minute": 100_000}
    )
    answers: list[tuple[bool, Reply]] = []
    over = threading.Event()

    def keep_asking(streamed: bool) -> None:
        while not over.is_set():
            answers.append((streamed, customer.chat(stream=streamed, max_tokens=50)))

    for upstream in installed.upstreams:
        upstream.forget_answers()
        upstream.answer_with(
            lambda exchange: (
                stream(["a"] * 3, pace_seconds=0.01, input_tokens=9)
                if exchange.asked.streamed
                else reply("a a a", input_tokens=9, output_tokens=3)
            )
        )
    clients = [threading.Thread(target=keep_asking, args=(n % 2 == 0,)) for n in range(8)]
    for client in clients:
        client.start()
    first, second = (upstream.base_url for upstream in installed.upstreams)
    refused = 0
    for turn in range(40):
        price = f"prompt_rate = {1_000_000 * (1 + (turn + 1) % 3)}"
        here = second if turn % 2 == 0 else first
        text = re.sub(r"prompt_rate = \d+", price, installed.text)
        installed.text = re.sub(r'base_url = "[^"]+"', f'base_url = "{here}"', text)
        installed.write()
        refused += not installed.server.operate("reload")["changes"]
    over.set()
    for client in clients:
        client.join()

    installed.wait_for_retired(40)
    assert refused == 0
    assert len(answers) > 40
    assert {answered.status for _, answered in answers} == {200}
    assert {one.events[-1].data for streamed, one in answers if streamed} == {"[DONE]"}
    prices: set[int] = set()
    for _, answered in answers:
        receipt = customer.receipt_of(answered)
        rate = receipt["rates"]["prompt"]
        prices.add(rate)
        assert receipt["credits"]["consumed"] == 9 * rate // 1_000_000 + 2 * 3
    assert prices == {1_000_000, 2_000_000, 3_000_000}
    eventually(lambda: customer.available == customer.balance, 5.0)


# --- health checks --------------------------------------------------------------------------------


def test_checks_begin_and_end_with_the_upstream_that_wants_them(installed: Installation) -> None:
    upstream = installed.upstreams[0]

    def checks() -> int:
        return sum(exchange.path.endswith("/models") for exchange in upstream.exchanges)

    checked = 'base_url = "{0}"\nhealth_path = "/models"\nhealth_seconds = 0.1'
    plain = f'base_url = "{upstream.base_url}"'
    installed.reload((plain, checked.format(upstream.base_url)))
    eventually(lambda: checks() >= 3, 10.0)
    installed.reload((checked.format(upstream.base_url), plain))
    installed.wait_for_retired(2)
    before, customer = checks(), installed.customer()
    for _ in range(40):  # longer than a check would wait for its turn
        customer.chat(max_tokens=50)

    assert checks() == before
    eventually(lambda: upstream.connections_open == 1, 5.0)

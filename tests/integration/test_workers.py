"""`tollway serve --workers N`: several processes on one port, with real Postgres and Redis."""

import json
import os
import pty
import re
import signal
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from tests.support.answers import pause, stream
from tests.support.builders import chat_bytes
from tests.support.customer import a_customer, eventually
from tests.support.fake_upstream import FakeUpstream
from tests.support.http import RawClient, Reply
from tests.support.model import put_model_into
from tests.support.postgres import PostgresServer
from tests.support.redis import RedisServer, a_redis
from tests.support.server import TOLLWAY, TollwayServer, config_for, run_tollway

from tollway.workers.leash import ALIVE_EVERY_SECONDS, SILENT_SECONDS_MAX

WORKERS = 3
SECONDS_MAX = 60.0

Start = Callable[..., TollwayServer]


@pytest.fixture
def upstream() -> Generator[FakeUpstream]:
    with FakeUpstream(models=("parrot-upstream",)) as running:
        yield running


@pytest.fixture
def redis() -> Generator[RedisServer]:
    with a_redis() as server:
        yield server


@pytest.fixture
def head(database_url: str, redis: RedisServer) -> str:
    return head_of(database_url, redis)


def head_of(database_url: str, redis: RedisServer) -> str:
    return f'[server]\ndatabase = "{database_url}"\nrate_store = "{redis.url}"\n'


@pytest.fixture
def server(head: str, upstream: FakeUpstream, tmp_path: Path) -> Generator[TollwayServer]:
    config = config_for(upstream.base_url, more=head)
    arguments = ("--workers", str(WORKERS))
    with TollwayServer(tmp_path / "data", config, arguments=arguments) as running:
        yield running


@contextmanager
def a_server(
    postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Generator[TollwayServer]:
    folder = tmp_path_factory.mktemp("workers")
    with FakeUpstream(models=("parrot-upstream",)) as upstream, a_redis() as redis:
        config = config_for(
            upstream.base_url, more=head_of(postgres.url(postgres.new_database()), redis)
        )
        arguments = ("--workers", str(WORKERS))
        with TollwayServer(folder / "data", config, arguments=arguments) as running:
            yield running


@pytest.fixture(scope="module")
def shared(
    postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Generator[TollwayServer]:
    """For tests that only ask, and leave it as it was."""
    with a_server(postgres, tmp_path_factory) as running:
        yield running


def workers_of(server: TollwayServer) -> list[psutil.Process]:
    children = psutil.Process(server.pid).children()
    return [child for child in children if "tollway.workers" in " ".join(child.cmdline())]


def ask(server: TollwayServer, method: str, path: str, body: bytes | None = None) -> Reply:
    """On a connection of its own, which any worker may get."""
    with RawClient("127.0.0.1", server.port, timeout_seconds=30) as client:
        client.request(method, path, body, ("Authorization", f"Bearer {server.token}"))
        return client.read_reply()


def chat(server: TollwayServer) -> Reply:
    return ask(server, "POST", "/v1/chat/completions", chat_bytes(model="acme/parrot"))


def samples(server: TollwayServer, name: str) -> dict[str, float]:
    """Of each worker, summed over the other labels."""
    page = ask(server, "GET", "/metrics").body.decode()
    found: dict[str, float] = {}
    for labels, value in re.findall(rf"^{name}\{{(.*)\}} (\S+)$", page, re.MULTILINE):
        (worker,) = re.findall(r'worker="(\d+)"', labels)
        found[worker] = found.get(worker, 0.0) + float(value)
    return found


def test_sqlite_is_refused_with_the_reason(tmp_path: Path) -> None:
    done = run_tollway("serve", "--workers", "2", "--data-dir", str(tmp_path))

    assert done.status == 1
    assert "server.database: 2 workers" in done.stderr


def test_rates_in_memory_are_refused_with_the_reason(tmp_path: Path, database_url: str) -> None:
    config = tmp_path / "tollway.toml"
    config.write_text(f'[server]\ndatabase = "{database_url}"\n')
    done = run_tollway("serve", "--workers", "2", "--config", str(config))

    assert done.status == 1
    assert "server.rate_store: each of 2 workers" in done.stderr


def test_workers_serve_one_port_and_count_together(server: TollwayServer) -> None:
    assert len(workers_of(server)) == WORKERS
    assert server.stdout.count("Token: ") == 1

    statuses = [chat(server).status for _ in range(40)]

    assert statuses == [200] * 30 + [429] * 10
    counted = samples(server, "tollway_requests_total")
    assert sum(samples(server, "tollway_settlements_total").values()) == 30
    assert set(samples(server, "tollway_rates_exact")) == {"0", "1", "2"}
    # The kernel spreads 40 connections; that one worker gets none is less likely than 10^-6.
    assert len([count for count in counted.values() if count]) == WORKERS


def test_the_page_of_metrics_says_everything_of_every_worker_once(shared: TollwayServer) -> None:
    page = ask(shared, "GET", "/metrics").body.decode()

    names = re.findall(r"^# HELP (\S+)", page, re.MULTILINE)
    assert len(names) == len(set(names))
    lines = [line.rsplit(" ", 1)[0] for line in page.splitlines() if not line.startswith("#")]
    assert len(lines) == len(set(lines))
    assert set(samples(shared, "process_resident_memory_bytes")) == {"0", "1", "2"}


def test_a_token_that_is_changed_is_so_at_every_worker(shared: TollwayServer) -> None:
    customer = a_customer(shared)
    token = shared.command("token", "set", customer.token_id, "--strict", "--name", "new", "--json")

    refused = [customer.chat(unheard_of=1).status for _ in range(20)]

    assert token.json()["name"] == "new", token.stderr
    assert refused == [400] * 20


def test_there_is_one_access_log(shared: TollwayServer) -> None:
    ids = {str(chat(shared).header("x-request-id")) for _ in range(20)}
    log = shared.data_dir / "access.log"

    def logged() -> list[str]:
        lines = log.read_text().splitlines() if log.exists() else []
        return [id_ for line in lines if (id_ := str(json.loads(line)["request_id"])) in ids]

    eventually(lambda: len(logged()) >= 20, 10.0)
    assert sorted(logged()) == sorted(ids)


def test_a_worker_that_is_killed_is_replaced_while_the_others_serve(
    server: TollwayServer,
) -> None:
    victim, *others = workers_of(server)
    victim.kill()
    psutil.wait_procs([victim], 10)
    for _ in range(10):
        assert ask(server, "GET", "/v1/models").status == 200

    eventually(lambda: len(workers_of(server)) == WORKERS, SECONDS_MAX)
    eventually(lambda: len(samples(server, "tollway_build_info")) == WORKERS, SECONDS_MAX)
    assert {one.pid for one in others} < {one.pid for one in workers_of(server)}
    eventually(lambda: "is up again" in server.stderr, SECONDS_MAX)


@dataclass(frozen=True)
class Silence:
    """What half a minute in which a worker of one server and the supervisor of another were stopped
    left behind."""

    hanging: TollwayServer
    victim: psutil.Process
    others: set[int]
    hung_seconds: float
    supervised: TollwayServer
    workers_before: set[int]


@pytest.fixture(scope="module")
def silence(
    postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Generator[Silence]:
    """Both at the same time: the product's half minute is waited for once."""
    with ExitStack() as stack:
        hanging, supervised = (
            stack.enter_context(a_server(postgres, tmp_path_factory)) for _ in range(2)
        )
        victim, *others = workers_of(hanging)
        workers_before = {one.pid for one in workers_of(supervised)}

        supervised.signal(signal.SIGSTOP)
        victim.suspend()
        stopped = time.monotonic()
        psutil.wait_procs([victim], SECONDS_MAX)
        hung_seconds = time.monotonic() - stopped
        time.sleep(max(0.0, SILENT_SECONDS_MAX + 3 - hung_seconds))
        supervised.signal(signal.SIGCONT)

        yield Silence(
            hanging,
            victim,
            {one.pid for one in others},
            hung_seconds,
            supervised,
            workers_before,
        )


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_worker_that_hangs_is_killed_and_replaced(silence: Silence) -> None:
    server = silence.hanging

    assert not silence.victim.is_running()
    assert SILENT_SECONDS_MAX - 3 < silence.hung_seconds < SILENT_SECONDS_MAX + 10
    eventually(lambda: len(samples(server, "tollway_build_info")) == WORKERS, SECONDS_MAX)
    assert silence.others < {one.pid for one in workers_of(server)}
    assert re.search(r"worker \d has hung for 30 s and is killed", server.stderr)
    assert [ask(server, "GET", "/v1/models").status for _ in range(20)] == [200] * 20


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_supervisor_that_was_stopped_kills_no_worker_for_it(silence: Silence) -> None:
    server = silence.supervised
    time.sleep(3)  # it looks at them each second

    assert {one.pid for one in workers_of(server)} == silence.workers_before
    assert "hung" not in server.stderr


@pytest.fixture
def cleanup() -> Generator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def to_the_supervisor(server: TollwayServer) -> None:
    server.signal(signal.SIGTERM)


def ctrl_c_in_a_terminal(server: TollwayServer) -> None:
    """It goes to the whole group, and the supervisor tells its workers as well."""
    os.killpg(server.pid, signal.SIGINT)


def to_a_control_group(server: TollwayServer) -> None:
    """As systemd stops a service, unless it is told otherwise."""
    os.killpg(server.pid, signal.SIGTERM)


@pytest.mark.parametrize("stop", [to_the_supervisor, ctrl_c_in_a_terminal, to_a_control_group])
def test_a_stop_drains_every_worker(
    server: TollwayServer,
    upstream: FakeUpstream,
    cleanup: ExitStack,
    stop: Callable[[TollwayServer], None],
) -> None:
    upstream.answer(stream(["a", pause(1.0), "b"]), times=None)
    body = chat_bytes(model="acme/parrot", stream=True)
    clients = [
        cleanup.enter_context(RawClient("127.0.0.1", server.port, timeout_seconds=30))
        for _ in range(9)
    ]
    for client in clients:
        token = ("Authorization", f"Bearer {server.token}")
        client.request("POST", "/v1/chat/completions", body, token)
        assert client.read_head().status == 200
    processes = workers_of(server)

    stop(server)
    ends = [client.read_events()[-1].data for client in clients]
    status = server.wait(SECONDS_MAX)

    assert ends == ["[DONE]"] * 9
    assert status == 0
    assert not any(process.is_running() for process in processes)


def test_a_second_stop_ends_every_worker_at_once(
    server: TollwayServer, upstream: FakeUpstream
) -> None:
    upstream.answer(stream(["a", pause(30.0), "b"]), times=None)
    token = ("Authorization", f"Bearer {server.token}")
    with RawClient("127.0.0.1", server.port, timeout_seconds=30) as client:
        body = chat_bytes(model="acme/parrot", stream=True)
        client.request("POST", "/v1/chat/completions", body, token)
        assert client.read_head().status == 200
        server.signal(signal.SIGTERM)
        eventually(lambda: "a worker stops: 1 request" in server.stderr, 10.0)

        server.signal(signal.SIGTERM)

        server.wait(10.0)


def test_workers_in_a_terminal_go_when_the_terminal_does(
    head: str, upstream: FakeUpstream, tmp_path: Path
) -> None:
    config = tmp_path / "tollway.toml"
    config.write_text(config_for(upstream.base_url, more=head))
    where = ["--config", str(config), "--data-dir", str(tmp_path / "data")]
    pid, terminal = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # who runs the tests may be under nohup
        serve = [*TOLLWAY, "serve", "--workers", str(WORKERS), "--port", "0", *where]
        os.execvp(TOLLWAY[0], serve)  # noqa: S606
    shown = b""
    while b"Ctrl-C stops it." not in shown:
        shown += os.read(terminal, 4096)
    os.close(terminal)

    eventually(lambda: psutil.Process(pid).status() == psutil.STATUS_ZOMBIE, SECONDS_MAX)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.parametrize("hangs", [False, True], ids=["killed", "hung-and-killed"])
def test_workers_do_not_outlive_their_supervisor(server: TollwayServer, hangs: bool) -> None:
    processes = workers_of(server)

    if hangs:  # what workers have told it is not read: the kernel then resets their end
        server.signal(signal.SIGSTOP)
        time.sleep(ALIVE_EVERY_SECONDS + 1)
    server.kill()

    _, alive = psutil.wait_procs(processes, SECONDS_MAX)
    assert alive == []


def test_a_changed_configuration_reaches_every_worker(
    server: TollwayServer, upstream: FakeUpstream
) -> None:
    assert server.config is not None

    def rename(before: str, after: str) -> None:
        assert server.config is not None
        text = server.config.read_text()
        server.config.write_text(text.replace(f'id = "acme/{before}"', f'id = "acme/{after}"'))

    def models() -> set[str]:
        """What 20 connections are told: one worker being missed each time is next to impossible."""
        return {ask(server, "GET", "/v1/models").json()["data"][0]["id"] for _ in range(20)}

    rename("parrot", "macaw")
    server.signal(signal.SIGHUP)
    eventually(lambda: models() == {"acme/macaw"}, 20.0)

    rename("macaw", "kea")
    done = server.command("reload")
    assert done.status == 0, done.stderr
    assert models() == {"acme/kea"}


def test_the_upstreams_are_listed_as_the_first_worker_knows_them(shared: TollwayServer) -> None:
    listed = shared.command("upstream", "list", "--json")

    assert listed.status == 0, listed.stderr
    assert [one["name"] for one in listed.json()["data"]] == ["gpu-1"]


def test_where_a_worker_cannot_start_the_start_is_refused(
    head: str, upstream: FakeUpstream, tmp_path: Path, redis: RedisServer
) -> None:
    redis.kill()
    config = config_for(upstream.base_url, more=head)
    server = TollwayServer(tmp_path / "data", config, arguments=("--workers", "2"))
    server.launch()
    status = server.wait(SECONDS_MAX)

    assert status == 1
    assert "server.rate_store" in server.stderr
    assert "A worker could not start" in server.stderr


@pytest.mark.parametrize(
    ("folder", "arguments", "mend"),
    [
        ("workers/4", ("--workers", "2"), "Start with --workers 5 once."),
        ("workers/0", (), "Start with --workers 2 once."),
        (".", ("--workers", "2"), "Start without --workers once."),
    ],
)
def test_charges_that_another_start_left_unwritten_are_not_forgotten(
    folder: str,
    arguments: tuple[str, ...],
    mend: str,
    head: str,
    upstream: FakeUpstream,
    tmp_path: Path,
) -> None:
    left = tmp_path / "data" / folder
    left.mkdir(parents=True)
    (left / "journal").write_bytes(b"a charge\n")
    config = config_for(upstream.base_url, more=head)
    server = TollwayServer(tmp_path / "data", config, arguments=arguments)
    server.launch()

    assert server.wait(SECONDS_MAX) == 1
    assert mend in server.stderr


def test_where_both_ways_to_start_left_charges_neither_waits_for_the_other(
    head: str, upstream: FakeUpstream, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    for folder in (data, data / "workers" / "0", data / "workers" / "0.copy"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "journal").write_bytes(b"a charge\n")
    config = config_for(upstream.base_url, more=head)

    alone = TollwayServer(data, config)
    alone.launch()
    assert alone.wait(SECONDS_MAX) == 1
    assert "Start with --workers 2 once." in alone.stderr

    workers = TollwayServer(data, config, arguments=("--workers", "2"))
    workers.launch()
    eventually(lambda: "Base URL" in workers.stdout, SECONDS_MAX)
    assert workers.stop() == 0

    alone.launch()
    eventually(lambda: "Base URL" in alone.stdout, SECONDS_MAX)
    assert alone.stop() == 0


def test_a_reload_that_is_asked_for_while_workers_start_ends_none(
    head: str, upstream: FakeUpstream, tmp_path: Path
) -> None:
    config = config_for(upstream.base_url, more=head)
    server = TollwayServer(tmp_path / "data", config, arguments=("--workers", "2"))
    server.launch()
    eventually(lambda: len(workers_of(server)) == 2, SECONDS_MAX)

    server.signal(signal.SIGHUP)

    eventually(lambda: "Base URL" in server.stdout, SECONDS_MAX)
    assert server.stop() == 0


@pytest.mark.model
@pytest.mark.slow
def test_all_workers_share_one_embedded_model(head: str, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    put_model_into(data_dir)
    with TollwayServer(data_dir, head, arguments=("--workers", "2")) as server:
        runners = [
            one
            for one in psutil.Process(server.pid).children(recursive=True)
            if "embedded.runner" in " ".join(one.cmdline())
        ]
        assert len(runners) == 1
        body = chat_bytes(model="tollway/smollm2-135m", max_tokens=2)
        statuses = [ask(server, "POST", "/v1/chat/completions", body).status for _ in range(12)]
        assert statuses == [200] * 12
        settled = samples(server, "tollway_settlements_total")
        assert len([count for count in settled.values() if count]) == 2

        runners[0].kill()
        eventually(
            lambda: ask(server, "POST", "/v1/chat/completions", body).status == 200, SECONDS_MAX
        )

"""How each gateway under test is set up and started: nginx as the yardstick, Tollway with
everything on; and the model's server behind them all."""

import contextlib
import functools
import json
import os
import subprocess
import tempfile
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.environments import NEWER_PYTHON, newer_python
from benchmarks.processes import BUILD, GATEWAY_CORE, LOAD_CORE, built, free_port, running

MODEL = "m1"
PATH = "/api/v1/chat/completions"
MEMORY = "/dev/shm"  # noqa: S108 (a folder of a random name is made in it)

# Modules are compiled once, as pip does when it installs. Where that is forbidden, as it may be on
# the machine of a benchmark, compiling at each start leaves 4 MB behind in the process.
BYTECODE_KEPT = {
    "PYTHONDONTWRITEBYTECODE": "",
    "PYTHONPYCACHEPREFIX": str(BUILD / "bytecode"),
}


@dataclass(frozen=True, slots=True)
class Upstream:
    """The model's server: a stand-in that answers at once."""

    port: int
    pid: int


@contextlib.contextmanager
def upstream(folder: Path) -> Generator[Upstream]:
    port = free_port()
    command = [built("fake_upstream"), str(port)]
    log = folder / "upstream.log"
    with running(command, core=LOAD_CORE, port=port, log=log) as process:
        yield Upstream(port, process.pid)


@dataclass(frozen=True, slots=True)
class Gateway:
    """One under test, as the load reaches it. `pid` is the root of all its processes; `headers` are
    sent with each request."""

    name: str
    pid: int
    port: int
    upstream: Upstream
    token: str = "none"  # noqa: S105 (it is none)
    path: str = PATH
    model: str = MODEL
    headers: tuple[tuple[str, str], ...] = ()
    data: Path | None = None
    """Tollway's data directory; a gateway without accounts has none."""


@contextlib.contextmanager
def direct(upstream: Upstream) -> Generator[Gateway]:
    """No gateway at all: what the load and the model's server need, and how fast they can be."""
    yield Gateway("no gateway", upstream.pid, upstream.port, upstream)


# One worker that passes the same bytes on: no check, no log, connections kept on both sides,
# nothing buffered.
NGINX = """\
{user}daemon off;
worker_processes 1;
worker_rlimit_nofile 20000;
pid nginx.pid;
error_log stderr warn;
events {{ worker_connections 10000; }}
http {{
  access_log off;
  tcp_nodelay on;
  keepalive_requests 1000000000;
  keepalive_timeout 600s;
  client_max_body_size 32m;
  client_body_buffer_size 2m;
  client_body_temp_path body;
  proxy_temp_path proxy;
  fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi;
  scgi_temp_path scgi;
  upstream model {{
    server 127.0.0.1:{upstream_port};
    keepalive 1024;
    keepalive_requests 1000000000;
    keepalive_timeout 600s;
  }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://model;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_read_timeout 600s;
    }}
  }}
}}
"""


@contextlib.contextmanager
def nginx(folder: Path, upstream: Upstream) -> Generator[Gateway]:
    """A private instance: its own prefix, pid file and temporary folders."""
    port = free_port()
    # Started by root its worker would become nobody, who may not enter the private folder.
    user = "user root;\n" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(
        NGINX.format(user=user, port=port, upstream_port=upstream.port)
    )
    command = ["nginx", "-p", f"{folder}/", "-c", "nginx.conf", "-e", "stderr"]
    with running(command, core=GATEWAY_CORE, port=port, log=folder / "nginx.log") as process:
        yield Gateway("nginx", process.pid, port, upstream)


# Every check stays on: only the numbers that a single account would run into are raised.
TOLLWAY = """\
[server]
host = "127.0.0.1"
database = "sqlite"
rate_store = "memory"

[limits]
requests_per_minute = 1000000
other_requests_per_minute = 1000000
concurrent_requests = 100000
starting_credits = 1000000000000

[tiers.budget]
prompt_rate = 700
completion_rate = 4000

[[upstreams]]
name = "bench"
base_url = "http://127.0.0.1:{upstream_port}/v1"

[[models]]
id = "{model}"
tier = "budget"
context_length = 8192
max_output_tokens = 4096
upstreams = [{{ name = "bench", model = "{model}" }}]
"""


@contextlib.contextmanager
def tollway(
    folder: Path,
    upstream: Upstream,
    program: Sequence[str],
    *,
    data: Path | None = None,
    name: str = "Tollway",
    under: Sequence[str] = (),
    start_seconds: float = 30,
) -> Generator[Gateway]:
    """As a user starts it: SQLite, each charge on disk before its answer ends. With a new data
    directory, or one that is there. `under` is what it is run by, to be looked at."""
    _compile(tuple(program), os.environ.get("PYTHONPATH"))
    port = free_port()
    data = data or folder / "data"
    places = tollway_places(folder, upstream.port, data)
    command = [*under, *program, "serve", *places, "--port", str(port)]
    log = folder / f"tollway-{port}.log"
    with running(
        command,
        core=GATEWAY_CORE,
        port=port,
        log=log,
        seconds=start_seconds,
        env=BYTECODE_KEPT,
    ) as process:
        token = _issue_token(program, places)
        yield Gateway(name, process.pid, port, upstream, token, data=data)


@functools.cache
def _compile(program: Sequence[str], python_path: str | None) -> None:
    """By a start that is not measured: the first, of these modules in this process."""
    del python_path  # the program is another with it
    with tempfile.TemporaryDirectory(prefix="tollway-compile-") as name:
        folder, port = Path(name), free_port()
        places = tollway_places(folder, port, folder / "data")
        command = [*program, "serve", *places, "--port", str(port)]
        log = folder / "tollway.log"
        with running(command, core=GATEWAY_CORE, port=port, log=log, env=BYTECODE_KEPT):
            pass


@contextlib.contextmanager
def tollway_in_memory(
    folder: Path, upstream: Upstream, program: Sequence[str]
) -> Generator[Gateway]:
    """The same with its data where an fsync takes no time: what a request takes beside it."""
    with (
        tempfile.TemporaryDirectory(prefix="tollway-bench-", dir=MEMORY) as data,
        tollway(folder, upstream, program, data=Path(data), name="Tollway in memory") as gateway,
    ):
        yield gateway


@contextlib.contextmanager
def tollway_on_newer_python(folder: Path, upstream: Upstream) -> Generator[Gateway]:
    """Raises `NotHere`."""
    program = [str(newer_python() / "tollway")]
    with tollway(folder, upstream, program, name=f"Tollway on {NEWER_PYTHON}") as gateway:
        yield gateway


def tollway_places(folder: Path, upstream_port: int, data: Path) -> list[str]:
    return ["--config", str(tollway_settings(folder, upstream_port)), "--data-dir", str(data)]


def tollway_settings(folder: Path, upstream_port: int) -> Path:
    settings = folder / "tollway.toml"
    settings.write_text(TOLLWAY.format(upstream_port=upstream_port, model=MODEL))
    return settings


def _issue_token(program: Sequence[str], places: Sequence[str]) -> str:
    command = [*program, "token", "issue", "--account", "default", "--scope", "llm-all"]
    ran = subprocess.run([*command, *places, "--json"], check=True, stdout=subprocess.PIPE)
    return json.loads(ran.stdout)["personal_access_token"]

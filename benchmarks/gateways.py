"""How each gateway under test is set up and started: nginx as the yardstick, Tollway with
everything on."""

import contextlib
import json
import os
import subprocess
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import GATEWAY_CORE, free_port, running

MODEL = "m1"
PATH = "/api/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Gateway:
    """One under test, as the load reaches it. `pid` is the root of all its processes; `headers` are
    sent with each request."""

    name: str
    pid: int
    port: int
    token: str
    path: str = PATH
    model: str = MODEL
    headers: tuple[tuple[str, str], ...] = ()


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
  client_body_buffer_size 64k;
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
def nginx(folder: Path, upstream_port: int) -> Generator[Gateway]:
    """A private instance: its own prefix, pid file and temporary folders."""
    port = free_port()
    # Started by root its worker would become nobody, who may not enter the private folder.
    user = "user root;\n" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(
        NGINX.format(user=user, port=port, upstream_port=upstream_port)
    )
    command = ["nginx", "-p", f"{folder}/", "-c", "nginx.conf", "-e", "stderr"]
    with running(command, core=GATEWAY_CORE, port=port, log=folder / "nginx.log") as process:
        yield Gateway("nginx", process.pid, port, "unused")


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
    folder: Path, upstream_port: int, program: Sequence[str], *, data: Path | None = None
) -> Generator[Gateway]:
    """As a user starts it: SQLite, each charge on disk before its answer ends. With a new data
    directory, or one that is there."""
    port = free_port()
    places = tollway_places(folder, upstream_port, data or folder / "data")
    command = [*program, "serve", *places, "--port", str(port)]
    log = folder / f"tollway-{port}.log"
    with running(command, core=GATEWAY_CORE, port=port, log=log) as process:
        yield Gateway("Tollway", process.pid, port, _issue_token(program, places))


def tollway_places(folder: Path, upstream_port: int, data: Path) -> list[str]:
    settings = folder / "tollway.toml"
    settings.write_text(TOLLWAY.format(upstream_port=upstream_port, model=MODEL))
    return ["--config", str(settings), "--data-dir", str(data)]


def _issue_token(program: Sequence[str], places: Sequence[str]) -> str:
    command = [*program, "token", "issue", "--account", "default", "--scope", "llm-all"]
    ran = subprocess.run([*command, *places, "--json"], check=True, stdout=subprocess.PIPE)
    return json.loads(ran.stdout)["personal_access_token"]

"""A running Tollway: the real command in a process of its own, on a free port, with its own data
directory."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tollway.api.admin.control import ask
from tollway.settings import Settings, load_settings
from tollway.store import open_operations

START_SECONDS_MAX = 40.0
STOP_SECONDS_MAX = 10.0
TOLLWAY = [sys.executable, "-m", "tollway"]
A_CREDIT_A_TOKEN = (1_000_000, 2_000_000)
"""Rates with which a receipt shows each token: one credit for an input and two for an output
token."""


@dataclass(frozen=True)
class Finished:
    status: int
    stdout: str
    stderr: str

    def json(self) -> Any:
        return json.loads(self.stdout)


def parrot(
    upstreams: str, *, model: str = "acme/parrot", rates: tuple[int, int] = A_CREDIT_A_TOKEN
) -> str:
    """TOML of a model and its tier; `upstreams` is TOML too."""
    prompt_rate, completion_rate = rates
    return f"""
[tiers.parrot]
prompt_rate = {prompt_rate}
completion_rate = {completion_rate}

[[models]]
id = "{model}"
tier = "parrot"
context_length = 100000
max_output_tokens = 4096
default_max_tokens = 1000
upstreams = {upstreams}
"""


def config_for(
    upstream_url: str,
    *,
    model: str = "acme/parrot",
    rates: tuple[int, int] = (1000, 2000),
    more: str = "",
) -> str:
    """One model behind one upstream; `more` is added TOML, before the models."""
    upstreams = '[{ name = "gpu-1", model = "parrot-upstream" }]'
    return f"""
{more}
[[upstreams]]
name = "gpu-1"
base_url = "{upstream_url}"
{parrot(upstreams, model=model, rates=rates)}"""


class TollwayServer:
    """Start it with `start` or as a context manager; `kill` and `start` again keep the data
    directory."""

    def __init__(
        self,
        data_dir: Path,
        config: str | None = None,
        *,
        env: dict[str, str] | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        self.data_dir = data_dir
        self.config = None if config is None else data_dir.parent / f"{data_dir.name}.toml"
        if self.config is not None and config is not None:
            self.config.write_text(config)
        self._env = {**os.environ, **(env or {})}
        self._arguments = list(arguments)
        self._process: subprocess.Popen[str] | None = None
        self._output: list[str] = []
        self._errors: list[str] = []
        self._readers: list[threading.Thread] = []
        self.base_url = ""
        self.token = ""

    def __enter__(self) -> "TollwayServer":
        self.start()
        return self

    def __exit__(self, *raised: object) -> None:
        if self._process is not None:
            self.stop()

    def start(self, seconds: float = START_SECONDS_MAX) -> None:
        """Returns when it has said where it listens, which is when its models are there."""
        self.launch()
        self._wait_for_line(r"^\s+-d ", seconds)
        self.base_url = self._found(r"Base URL: (\S+)")
        if match := re.search(r"Token: (tw_\w+)", self.stdout):
            self.token = match[1]

    def launch(self) -> None:
        """Starts it and waits for nothing."""
        self._output, self._errors = [], []
        self._process = subprocess.Popen(
            [*TOLLWAY, "serve", "--port", "0", *self._where(), *self._arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self._env,
            start_new_session=True,
        )
        self._readers = [
            threading.Thread(target=_collect, args=(stream, lines), daemon=True)
            for stream, lines in (
                (self._process.stdout, self._output),
                (self._process.stderr, self._errors),
            )
        ]
        for reader in self._readers:
            reader.start()

    def stop(self, seconds: float = 30.0) -> int:
        """SIGTERM, and its exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            status = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        self._ended()
        return status

    def kill(self) -> None:
        """kill -9."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._ended()

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def wait(self, seconds: float) -> int:
        assert self._process is not None
        status = self._process.wait(seconds)
        self._ended()
        return status

    @property
    def runs(self) -> bool:
        return self._process is not None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def origin(self) -> str:
        return self.base_url.removesuffix("/api/v1")

    @property
    def port(self) -> int:
        return int(self.origin.rpartition(":")[2])

    @property
    def stdout(self) -> str:
        return "".join(self._output)

    @property
    def stderr(self) -> str:
        return "".join(self._errors)

    def command(self, *arguments: str, through: Sequence[str] = ()) -> Finished:
        """Runs `tollway ARGUMENTS` on this installation, with or without the server."""
        return run_tollway(*arguments, *self._where(), env=self._env, through=through)

    def operate(self, command: str, **arguments: object) -> dict[str, Any]:
        """The same on the running server's control socket, without a process: a hundredth of the
        time; on Postgres, and where no server runs, as the command itself does it. Raises
        `Refused`."""
        settings = self._settings()
        if settings is not None and (settings.server.database.scheme or not self.runs):
            with ThreadPoolExecutor(1) as beside:
                return beside.submit(asyncio.run, _operate(settings, command, arguments)).result()
        result = ask(self.data_dir, command, arguments)
        assert result is not None, "the server does not run"
        return result

    def issue_token(self, *arguments: str, account: str = "default") -> str:
        done = self.command(
            "token", "issue", "--account", account, "--scope", "llm-all", *arguments, "--json"
        )
        assert done.status == 0, done.stderr
        return done.json()["personal_access_token"]

    def _settings(self) -> Settings | None:
        if self.config is None:
            return None
        with patch.dict(os.environ, self._env):
            return load_settings(self.config, data_dir=self.data_dir, for_serving=False)

    def _ended(self) -> None:
        # The readers end, and close the pipes, when the last process that has them is gone: the
        # model's child may outlive its parent by a moment.
        for reader in self._readers:
            reader.join(STOP_SECONDS_MAX)
        self._process = None

    def _where(self) -> list[str]:
        where = ["--data-dir", str(self.data_dir)]
        return where if self.config is None else [*where, "--config", str(self.config)]

    def _wait_for_line(self, pattern: str, seconds: float) -> None:
        assert self._process is not None
        deadline = time.monotonic() + seconds
        while not any(re.search(pattern, line) for line in self._output):
            if self._process.poll() is not None or time.monotonic() > deadline:
                status = self._process.poll()
                self._process.kill()
                self._process.wait()
                time.sleep(0.1)
                raise AssertionError(
                    f"tollway serve did not come up (exit {status}):\n{self.stdout}\n{self.stderr}"
                )
            time.sleep(0.01)

    def _found(self, pattern: str) -> str:
        match = re.search(pattern, self.stdout)
        assert match is not None, self.stdout
        return match[1]


async def _operate(
    settings: Settings, command: str, arguments: Mapping[str, object]
) -> dict[str, Any]:
    may_create = command == "account create"
    async with open_operations(settings, may_create=may_create) as operations:
        return await operations.execute(command, arguments, actor="tests")


def run_tollway(
    *arguments: str, env: dict[str, str] | None = None, through: Sequence[str] = ()
) -> Finished:
    """`through` is a command that runs it, such as `setpriv`."""
    done = subprocess.run(
        [*through, *TOLLWAY, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=env,
        timeout=60,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


def _collect(stream: Any, lines: list[str]) -> None:
    with stream:
        for line in stream:
            lines.append(line)

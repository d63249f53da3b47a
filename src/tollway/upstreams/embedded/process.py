"""Starts the child process that runs the model, watches it, and starts it again when it dies.

    stopped -> starting -> up -> (died) -> waiting -> starting -> up ...

The wait before a new start doubles from half a second to 30 s, and begins again at half a second
once a child has been up for a minute: a model that dies at its first request must not keep a
machine busy by loading. Each child has a new address and a new random key, which `came_up` is told;
`went_down` comes before the wait.
"""

import asyncio
import contextlib
import logging
import re
import secrets
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol
from urllib.parse import urlsplit

import msgspec

from tollway.errors import StartError

# -P: a directory that the server happens to be started in is no place to import from.
RUNNER = (sys.executable, "-P", "-m", "tollway.upstreams.embedded.runner")
STDERR_BYTES_KEPT = 8192
BUSY_SECONDS_MAX = 5.0
# `0.00.027.408 E llama_model_load: error loading model: tensor data is not within the file bounds`
LLAMA_ERROR = re.compile(r"^[\d.]+ E [^:\n]*: (.+)$", re.MULTILINE)

log = logging.getLogger("tollway.upstreams.embedded")


class RunnerSettings(msgspec.Struct, frozen=True):
    """What the runner reads from its stdin. `context_length` is of one slot; without
    `chat_template` the file's own is used."""

    model_path: str
    model_alias: str
    context_length: int
    parallel: int
    threads: int
    chat_template: str | None
    api_key: str = ""

    def __repr__(self) -> str:
        return f"RunnerSettings({self.model_path})"


class Backoff(msgspec.Struct, frozen=True):
    first_seconds: float = 0.5
    max_seconds: float = 30.0
    reset_after_seconds: float = 60.0

    def after(self, waited: float, up_seconds: float) -> float:
        """How long to wait now, after a wait of `waited` and then `up_seconds` of work."""
        if up_seconds >= self.reset_after_seconds or waited == 0:
            return self.first_seconds
        return min(waited * 2, self.max_seconds)


class _Answer(msgspec.Struct):
    address: str


class _Slot(msgspec.Struct):
    is_processing: bool


class RunningChild(Protocol):
    """A child as its upstream sees it: one of this process, or of the process that started this
    one."""

    async def start(self) -> None:
        """Returns when the model is loaded. Raises `StartError`."""
        ...

    async def stop(self) -> None: ...

    def ready(self) -> bool: ...

    async def busy_slots(self) -> int | None:
        """How many requests it works on; all it can while it does not say, None while there is no
        child."""
        ...


class Child:
    """`came_up(address, api_key)` and `went_down()` tell of every change but `stop`."""

    def __init__(
        self,
        settings: RunnerSettings,
        came_up: Callable[[str, str], None],
        went_down: Callable[[], Awaitable[None]],
        *,
        command: Sequence[str] = RUNNER,
        start_seconds: float = 120.0,
        backoff: Backoff = Backoff(),  # noqa: B008 (frozen)
    ) -> None:
        self._settings = settings
        self._came_up = came_up
        self._went_down = went_down
        self._command = command
        self._start_seconds = start_seconds
        self._backoff = backoff
        self._process: asyncio.subprocess.Process | None = None
        self._stderr = bytearray()
        self._stderr_reader: asyncio.Task[None] | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._address: str | None = None
        self._api_key = ""

    def ready(self) -> bool:
        return self._address is not None

    async def start(self) -> None:
        """Returns when the model is loaded. Raises `StartError` with what the child had to say."""
        await self._launch()
        self._supervisor = asyncio.create_task(self._supervise())

    async def stop(self) -> None:
        self._address = None
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
            self._supervisor = None
        await self._end_process()

    async def busy_slots(self) -> int | None:
        return await busy_slots(self._address, self._api_key, self._settings.parallel)

    async def _supervise(self) -> None:
        loop = asyncio.get_running_loop()
        waited = 0.0
        while True:
            assert self._process is not None
            up_since = loop.time()
            status = await self._process.wait()
            self._address = None
            await self._end_process()
            log.error(
                "the embedded model's process ended with status %s%s", status, self._last_words()
            )
            await self._went_down()
            waited = self._backoff.after(waited, loop.time() - up_since)
            waited = await self._restart(waited)

    async def _restart(self, wait: float) -> float:
        """Tries until it is up; says how long it waited last."""
        while True:
            await asyncio.sleep(wait)
            try:
                await self._launch()
            except StartError as error:
                log.error("%s", error.message)
                wait = self._backoff.after(wait, 0)
            else:
                log.warning("the embedded model is up again")
                return wait

    async def _launch(self) -> None:
        self._api_key = secrets.token_urlsafe(32)
        try:
            await self._spawn()
            async with asyncio.timeout(self._start_seconds):
                address = await self._introduce()
        except TimeoutError:
            await self._end_process()
            raise StartError(
                f"The embedded model was not loaded within {self._start_seconds:g} s"
                f"{self._reason()}."
            ) from None
        except (OSError, msgspec.DecodeError):
            await self._end_process()
            raise StartError(
                f"The embedded model's process could not start{self._reason()}. Is"
                f" {self._settings.model_path} a GGUF file that llama.cpp can read?"
            ) from None
        except BaseException:
            await self._end_process()
            raise
        self._address = address
        self._came_up(address, self._api_key)

    async def _spawn(self) -> None:
        self._stderr.clear()
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(
            *self._command, stdin=pipe, stdout=pipe, stderr=pipe
        )
        assert self._process.stderr is not None
        self._stderr_reader = asyncio.create_task(self._keep_stderr(self._process.stderr))

    async def _introduce(self) -> str:
        """Tells the child its settings, and waits for its address. stdin stays open: its end would
        tell it to go."""
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        settings = msgspec.structs.replace(self._settings, api_key=self._api_key)
        self._process.stdin.write(msgspec.json.encode(settings) + b"\n")
        await self._process.stdin.drain()
        line = await self._process.stdout.readline()
        return msgspec.json.decode(line, type=_Answer).address

    async def _keep_stderr(self, stderr: asyncio.StreamReader) -> None:
        while data := await stderr.read(4096):
            self._stderr += data
            del self._stderr[:-STDERR_BYTES_KEPT]

    def _reason(self) -> str:
        """Of a start that failed: llama.cpp's first error, which the others only follow from."""
        first_error = LLAMA_ERROR.search(self._stderr.decode(errors="replace"))
        return f": {first_error[1].strip()}" if first_error else self._last_words()

    def _last_words(self) -> str:
        lines = self._stderr.decode(errors="replace").strip().splitlines()
        return f": {lines[-1].strip().rstrip('.')}" if lines else ""

    async def _end_process(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        # It has nothing to save, and it ignores SIGTERM (runner.py).
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await process.wait()
        if process.stdin is not None:
            process.stdin.close()
        if self._stderr_reader is not None:
            await self._stderr_reader
            self._stderr_reader = None


async def busy_slots(address: str | None, api_key: str, all_slots: int) -> int | None:
    """As `RunningChild.busy_slots`, of the child at `address`."""
    if address is None:
        return None
    try:
        async with asyncio.timeout(BUSY_SECONDS_MAX):
            body = await _get(address, "/slots", api_key)
        return sum(slot.is_processing for slot in msgspec.json.decode(body, type=list[_Slot]))
    except (OSError, TimeoutError, msgspec.DecodeError):
        return all_slots


async def _get(address: str, path: str, api_key: str) -> bytes:
    """The only GET there is; the upstream's client posts."""
    parts = urlsplit(address)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        writer.write(
            f"GET {path} HTTP/1.0\r\nHost: {parts.netloc}\r\n"
            f"Authorization: Bearer {api_key}\r\n\r\n".encode()
        )
        reply = await reader.read()
    finally:
        writer.close()
    return reply.partition(b"\r\n\r\n")[2]

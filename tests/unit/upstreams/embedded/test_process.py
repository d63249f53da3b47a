"""The supervision of a child, with tiny programs in the model's place."""

import asyncio
import sys
from collections.abc import AsyncIterator

import psutil
import pytest

from tollway.errors import StartError
from tollway.upstreams.embedded.process import Backoff, Child, RunnerSettings

SETTINGS = RunnerSettings(
    model_path="/models/m.gguf",
    model_alias="embedded",
    context_length=64,
    parallel=3,
    threads=1,
    chat_template=None,
)
ANSWER = """
import json, sys
settings = json.loads(sys.stdin.readline())
print(json.dumps({"address": "http://127.0.0.1:1/" + settings["model_path"]}), flush=True)
"""
OBEDIENT = ANSWER + "sys.stdin.read()"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)" + OBEDIENT
COMPLAINS = "import sys; sys.stdin.readline(); sys.exit('x' * 10000 + '\\nno such tensor.')"
LLAMA_COMPLAINS = r"""
import sys
sys.stdin.readline()
sys.exit('''0.00.027.408 E llama_model_load: error loading model: it is cut off
0.00.027.442 E llama_model_load_from_file_impl: failed to load model
RuntimeError: Failed to init server, please check the input params.''')
"""
SILENT = "import sys; sys.stdin.read()"
# Comes up once, fails once, and comes up again: the directory it is started with counts.
FAILS_SECOND_TIME = (
    "import pathlib, sys; starts = pathlib.Path(sys.argv[1]); n = len(list(starts.iterdir()));"
    "(starts / str(n)).touch(); n == 1 and sys.exit('not now')" + OBEDIENT
)


class Watcher:
    """Starts children, and is told of their coming and going."""

    def __init__(self) -> None:
        self.addresses: list[tuple[str, str]] = []
        self.went_down_count = 0
        self.up = asyncio.Event()
        self.children: list[Child] = []

    def child(
        self,
        program: str,
        *arguments: str,
        start_seconds: float = 10,
    ) -> Child:
        child = Child(
            SETTINGS,
            self._came_up,
            self._went_down,
            command=(sys.executable, "-c", program, *arguments),
            start_seconds=start_seconds,
            backoff=Backoff(first_seconds=0, max_seconds=0),
        )
        self.children.append(child)
        return child

    def _came_up(self, address: str, api_key: str) -> None:
        self.addresses.append((address, api_key))
        self.up.set()

    async def _went_down(self) -> None:
        self.went_down_count += 1


@pytest.fixture
async def watcher() -> AsyncIterator[Watcher]:
    watcher = Watcher()
    yield watcher
    for child in watcher.children:
        await child.stop()


def processes(program: str) -> list[psutil.Process]:
    """Of ours, those that run it."""
    alive = [one for one in psutil.Process().children() if one.status() != psutil.STATUS_ZOMBIE]
    return [one for one in alive if program in one.cmdline()]


async def test_a_child_gets_its_settings_and_is_ready_with_its_address(watcher: Watcher) -> None:
    child = watcher.child(OBEDIENT)
    assert not child.ready()

    await child.start()

    assert child.ready()
    ((address, api_key),) = watcher.addresses
    assert address == "http://127.0.0.1:1//models/m.gguf"
    assert len(api_key) >= 32


@pytest.mark.parametrize("program", [OBEDIENT, STUBBORN])
async def test_a_stopped_child_is_gone(watcher: Watcher, program: str) -> None:
    child = watcher.child(program)
    await child.start()
    (process,) = processes(program)

    await child.stop()

    assert not process.is_running()
    assert not child.ready()
    assert watcher.went_down_count == 0


@pytest.mark.parametrize(
    ("program", "why"),
    [
        (COMPLAINS, r"could not start: no such tensor\. .*/models/m\.gguf"),
        (LLAMA_COMPLAINS, r"could not start: error loading model: it is cut off\. Is"),
    ],
)
async def test_a_child_that_cannot_start_says_why(watcher: Watcher, program: str, why: str) -> None:
    child = watcher.child(program)

    with pytest.raises(StartError, match=why):
        await child.start()

    assert not processes(program)


async def test_a_child_that_is_silent_is_given_up(watcher: Watcher) -> None:
    child = watcher.child(SILENT, start_seconds=0.2)

    with pytest.raises(StartError, match=r"not loaded within 0\.2 s"):
        await child.start()

    assert not processes(SILENT)


async def test_a_start_that_is_cancelled_leaves_no_process(watcher: Watcher) -> None:
    starting = asyncio.create_task(watcher.child(SILENT).start())
    await asyncio.to_thread(_wait_for, SILENT)

    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)

    assert not processes(SILENT)


def _wait_for(program: str) -> None:
    while not processes(program):
        pass


async def test_a_child_that_died_is_started_again_with_another_key(watcher: Watcher) -> None:
    child = watcher.child(OBEDIENT)
    await child.start()
    watcher.up.clear()

    (process,) = processes(OBEDIENT)
    process.kill()
    await watcher.up.wait()

    assert child.ready()
    assert watcher.went_down_count == 1
    keys = {api_key for _, api_key in watcher.addresses}
    assert len(keys) == 2


async def test_a_restart_that_fails_is_tried_again(
    watcher: Watcher, tmp_path_factory: pytest.TempPathFactory
) -> None:
    starts = tmp_path_factory.mktemp("starts")
    child = watcher.child(FAILS_SECOND_TIME, str(starts))
    await child.start()
    watcher.up.clear()

    (process,) = processes(FAILS_SECOND_TIME)
    process.kill()
    await watcher.up.wait()

    assert len(list(starts.iterdir())) == 3


async def test_slots_are_all_busy_while_the_child_does_not_say(watcher: Watcher) -> None:
    child = watcher.child(OBEDIENT)
    assert await child.busy_slots() is None

    await child.start()

    assert await child.busy_slots() == SETTINGS.parallel


def test_the_key_is_in_no_repr() -> None:
    assert "secret" not in repr(RunnerSettings("m", "a", 1, 1, 1, None, api_key="secret"))


@pytest.mark.parametrize(
    ("waited", "up_seconds", "wait"),
    [(0, 1, 0.5), (0.5, 1, 1), (16, 1, 30), (30, 1, 30), (30, 60, 0.5)],
)
def test_waits_double_until_a_child_stays_up(waited: float, up_seconds: float, wait: float) -> None:
    assert Backoff().after(waited, up_seconds) == wait

"""A changed file is adopted whole or not at all, and what cannot change while running is told."""

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import pytest

from tollway.errors import ConfigurationError, Refused, Unavailable
from tollway.reload import AGAIN_SHARE, LOOK_SECONDS, Changes, ConfigurationFile, Reloader
from tollway.settings import Embedded, Settings, load_settings

FILE = """
[limits]
requests_per_minute = 30

[tiers.gold]
prompt_rate = 700
completion_rate = 4000

[[upstreams]]
name = "gpu-1"
base_url = "http://gpu-1.example/v1"
api_key = "file:gpu-1.key"

[[upstreams]]
name = "gpu-2"
base_url = "http://gpu-2.example/v1"

[[models]]
id = "acme/parrot"
tier = "gold"
context_length = 4096
upstreams = [{ name = "gpu-1", model = "parrot" }]

[[models]]
id = "acme/small"
tier = "gold"
context_length = 2048
upstreams = [{ name = "embedded" }]
"""
LOOK = 0.01


class Server:
    """What runs by a file: it adopts what it is told to, or refuses it by `refuses`."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "tollway.toml"
        self.key = folder / "gpu-1.key"
        self.key.write_text("key-1")
        self.key.chmod(0o600)
        self.path.write_text(FILE)
        self.running = self.read()
        self.adopted: list[Settings] = []
        self.refuses: Exception | None = None
        self.reloads: list[bool] = []
        self.reloader = Reloader(
            ConfigurationFile(self.path, self.read),
            self.running,
            self._adopt,
            self,
            look_seconds=LOOK,
        )

    def read(self, embedded: Embedded | None = None) -> Settings:
        return load_settings(self.path, data_dir=self.path.parent / "data", embedded=embedded)

    def write(self, *replacements: tuple[str, str]) -> None:
        """Another file in its place, as editors write one."""
        text = FILE
        for before, after in replacements:
            assert before in text
            text = text.replace(before, after)
        fresh = self.path.with_suffix(".new")
        fresh.write_text(text)
        fresh.rename(self.path)

    async def until_reloads(self, *reloads: bool) -> None:
        await until(lambda: self.reloads == list(reloads))

    def reloaded(self, *, ok: bool) -> None:
        self.reloads.append(ok)

    async def _adopt(self, settings: Settings) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.adopted.append(settings)


async def until(true: Callable[[], bool]) -> None:
    for _ in range(1000):
        if true():
            return
        await asyncio.sleep(LOOK)
    raise AssertionError("it did not come to be so")


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path)


@pytest.fixture
async def watched(server: Server) -> AsyncIterator[Server]:
    watching = asyncio.create_task(server.reloader.watch())
    yield server
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching


# --- what has changed -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "changes"),
    [
        (
            "requests_per_minute = 30",
            "requests_per_minute = 60\nstarting_credits = 5",
            ("limits.requests_per_minute: 30 -> 60", "limits.starting_credits: 100000 -> 5"),
        ),
        (
            "prompt_rate = 700",
            "prompt_rate = 800",
            (
                "models.acme/parrot.prompt_rate: 700 -> 800",
                "models.acme/small.prompt_rate: 700 -> 800",
            ),
        ),
        (
            "http://gpu-2.example",
            "https://gpu-2.example",
            ('upstreams.gpu-2.base_url: "http://gpu-2.example/v1" -> "https://gpu-2.example/v1"',),
        ),
        (
            'name = "gpu-2"',
            'name = "gpu-3"',
            ("upstreams.gpu-2: removed", "upstreams.gpu-3: added"),
        ),
        (
            'id = "acme/small"',
            'id = "acme/tiny"',
            ("models.acme/small: removed", "models.acme/tiny: added"),
        ),
        ('api_key = "file:gpu-1.key"', "", ("upstreams.gpu-1.api_key: another one",)),
        (
            'name = "gpu-2"',
            'name = "gpu-2"\napi_key = "file:gpu-1.key"',
            ("upstreams.gpu-2.api_key: another one",),
        ),
        (
            'name = "gpu-2"',
            'name = "gpu-2"\nhealth_path = "/health"',
            ('upstreams.gpu-2.health_path: none -> "/health"',),
        ),
        (
            "context_length = 4096",
            "context_length = 4096\nconfidential = true",
            ("models.acme/parrot.confidential: false -> true",),
        ),
    ],
)
async def test_each_change_is_told_by_its_keys_path(
    server: Server, before: str, after: str, changes: tuple[str, ...]
) -> None:
    server.write((before, after))

    assert await server.reloader.reload() == Changes(changes, ())
    assert server.adopted == [server.read()]
    assert server.reloads == [True]


async def test_another_key_is_told_and_never_shown(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server.key.write_text("key-2")

    changes = await server.reloader.reload()

    assert changes.live == ("upstreams.gpu-1.api_key: another one",)
    assert "key-" not in caplog.text.replace("gpu-1.key", "")


async def test_what_is_as_it_was_adopts_nothing(server: Server) -> None:
    server.write(("[limits]", "# A comment.\n[limits]"))

    assert await server.reloader.reload() == Changes((), ())
    assert server.adopted == []
    assert server.reloads == [True]


async def test_a_change_is_told_once(server: Server) -> None:
    server.write(("requests_per_minute = 30", "requests_per_minute = 60"))

    first, second = await server.reloader.reload(), await server.reloader.reload()

    assert first.live
    assert second == Changes((), ())


async def test_two_who_ask_at_once_are_served_one_after_the_other(server: Server) -> None:
    server.write(("requests_per_minute = 30", "requests_per_minute = 60"))

    first, second = await asyncio.gather(server.reloader.reload(), server.reloader.reload())

    assert first.live
    assert second == Changes((), ())
    assert len(server.adopted) == 1


async def test_what_has_changed_and_what_had_better_not_be_is_in_the_log(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    server.write(("requests_per_minute = 30", "requests_per_minute = 60"))
    server.key.chmod(0o644)

    await server.reloader.reload()

    assert "changed: limits.requests_per_minute: 30 -> 60" in caplog.messages
    assert any(f"chmod 600 {server.key}" in told for told in caplog.messages)


async def test_what_needs_a_restart_is_told_and_stays(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.write(
        (
            "[limits]\n",
            "[server]\nport = 9090\ndrain_seconds = 5\n[embedded]\nparallel = 2\n[limits]\n",
        ),
        ("requests_per_minute = 30", "requests_per_minute = 60"),
    )

    changes = await server.reloader.reload()

    assert changes.live == ("limits.requests_per_minute: 30 -> 60",)
    assert changes.after_restart == (
        "server.port: 8080 -> 9090",
        "server.drain_seconds: 120.0 -> 5.0",
        "embedded.parallel: 4 -> 2",
    )
    (adopted,) = server.adopted
    assert adopted.server == server.running.server
    assert adopted.embedded == server.running.embedded
    assert "changes after a restart: server.port: 8080 -> 9090" in caplog.text


async def test_another_password_of_the_database_is_told_and_never_shown(server: Server) -> None:
    database = '[server]\ndatabase = "postgresql://tollway:{}@db.example/tollway"\n[limits]\n'
    server.write(("[limits]\n", database.format("one")))
    running = server.read()
    server.write(("[limits]\n", database.format("two")))
    file = ConfigurationFile(server.path, server.read)

    changes = await Reloader(file, running, _never, server).reload()

    assert changes.after_restart == ("server.database: another one",)


async def test_a_model_is_judged_by_the_embedded_model_that_runs(server: Server) -> None:
    server.write(
        ("[limits]\n", "[embedded]\ncontext_length = 9000\n[limits]\n"),
        ("context_length = 2048", "context_length = 8000"),
    )

    with pytest.raises(ConfigurationError, match=r"8000 is more .* after a restart alone\."):
        await server.reloader.reload()
    assert server.adopted == []


# --- what is refused --------------------------------------------------------------------------


async def test_a_file_that_is_wrong_is_refused_whole_by_the_path_of_its_key(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.write(
        ("requests_per_minute = 30", "requests_per_minute = 60"),
        ("context_length = 2048", "context_lenght = 2048"),
    )

    with pytest.raises(ConfigurationError) as refused:
        await server.reloader.reload()

    where = "models[1].context_lenght: there is no such setting. Did you mean `context_length`?"
    assert refused.value.message == where
    assert f"the configuration was refused, the running one stays: {where}" in caplog.text
    assert (server.adopted, server.reloads) == ([], [False])
    server.write(("requests_per_minute = 30", "requests_per_minute = 60"))
    assert (await server.reloader.reload()).live == ("limits.requests_per_minute: 30 -> 60",)


async def test_what_cannot_be_adopted_is_refused_and_can_be_tried_again(server: Server) -> None:
    server.write(("requests_per_minute = 30", "requests_per_minute = 60"))
    server.refuses = Unavailable("The disk is full.")
    with pytest.raises(Unavailable):
        await server.reloader.reload()

    server.refuses = None

    assert (await server.reloader.reload()).live == ("limits.requests_per_minute: 30 -> 60",)
    assert server.reloads == [False, True]


async def test_without_a_file_there_is_nothing_to_reload(server: Server) -> None:
    reloader = Reloader(None, server.running, partial(_never), server)

    with pytest.raises(Refused, match="without a configuration file"):
        await reloader.reload()


async def _never(settings: Settings) -> None:
    raise AssertionError("there is nothing to adopt")


# --- who asks for it --------------------------------------------------------------------------


async def test_a_file_that_is_written_anew_is_adopted(watched: Server) -> None:
    watched.write(("requests_per_minute = 30", "requests_per_minute = 60"))
    await watched.until_reloads(True)
    watched.write(("requests_per_minute = 30", "requests_per_minute = 90"))
    await watched.until_reloads(True, True)

    assert [one.limits.requests_per_minute for one in watched.adopted] == [60, 90]


def in_place(path: Path, text: str) -> None:
    path.write_text(text)


def anew_at_the_same_moment(path: Path, text: str) -> None:
    moment = path.stat().st_mtime_ns
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    os.utime(fresh, ns=(moment, moment))
    fresh.rename(path)


def longer_at_the_same_moment(path: Path, text: str) -> None:
    moment = path.stat().st_mtime_ns
    path.write_text(text + "\n")
    os.utime(path, ns=(moment, moment))


@pytest.mark.parametrize(
    "write",
    [in_place, anew_at_the_same_moment, longer_at_the_same_moment],
    ids=lambda w: w.__name__,
)
async def test_a_change_is_seen_however_it_is_written(
    watched: Server, write: Callable[[Path, str], None]
) -> None:
    watched.write(("requests_per_minute = 30", "requests_per_minute = 60"))
    await watched.until_reloads(True)
    write(watched.path, FILE.replace("requests_per_minute = 30", "requests_per_minute = 90"))
    await watched.until_reloads(True, True)


async def test_a_keys_file_that_is_written_anew_is_adopted(watched: Server) -> None:
    watched.key.write_text("key-2")
    await watched.until_reloads(True)
    watched.key.write_text("key-3")
    await watched.until_reloads(True, True)

    key = watched.adopted[1].upstreams[0].api_key
    assert key is not None
    assert key.reveal() == "key-3"


async def test_what_needs_a_restart_is_told_of_a_file_that_changes(watched: Server) -> None:
    watched.write(("[limits]\n", "[server]\nport = 9090\n[limits]\n"))
    await watched.until_reloads(True)


def test_a_file_that_changes_is_taken_within_a_second() -> None:
    assert LOOK_SECONDS * (1 + AGAIN_SHARE) < 1


async def test_a_bad_file_is_refused_once_and_the_next_good_one_adopted(
    watched: Server, caplog: pytest.LogCaptureFixture
) -> None:
    watched.write(("requests_per_minute = 30", "requests_per_minute = 0"))
    await watched.until_reloads(False)
    await asyncio.sleep(LOOK * 10)
    assert watched.reloads == [False]

    watched.path.unlink()
    await watched.until_reloads(False, False)
    watched.write(("requests_per_minute = 30", "requests_per_minute = 60"))
    await watched.until_reloads(False, False, True)
    assert "a fault of the program" not in caplog.text


async def test_a_file_that_is_touched_or_unchanged_is_no_reload(watched: Server) -> None:
    await asyncio.sleep(LOOK * 10)
    os.utime(watched.path)
    await asyncio.sleep(LOOK * 20)

    assert watched.reloads == []


async def test_a_signal_reloads_at_once_and_also_what_is_unchanged(server: Server) -> None:
    server.reloader = Reloader(
        ConfigurationFile(server.path, server.read),
        server.running,
        _never,
        server,
        look_seconds=60,
    )
    watching = asyncio.create_task(server.reloader.watch())
    server.reloader.ask()
    await server.until_reloads(True)
    watching.cancel()


async def test_a_fault_of_the_program_does_not_end_the_watch(
    watched: Server, caplog: pytest.LogCaptureFixture
) -> None:
    watched.refuses = RuntimeError("a bug")
    watched.reloader.ask()
    watched.write(("requests_per_minute = 30", "requests_per_minute = 60"))
    await until(lambda: "a reload failed on a fault" in caplog.text)

    watched.refuses = None
    watched.write(("requests_per_minute = 30", "requests_per_minute = 90"))
    await until(lambda: bool(watched.adopted))
    assert watched.adopted[0].limits.requests_per_minute == 90


async def test_a_file_that_is_still_being_written_is_not_read(server: Server) -> None:
    """Half of a file may be a configuration too: one with fewer models."""
    reloader = Reloader(ConfigurationFile(server.path, server.read), server.running, _never, server)
    for size in range(len(FILE) // 2, len(FILE), 7):
        server.path.write_text(FILE[:size])
        await reloader.look()

    assert server.reloads == []

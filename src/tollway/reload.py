"""Puts a changed configuration in place while requests run.

What can change is models with their prices, upstreams and limits. It is read whole, judged as at a
start, and either adopted in one step of the event loop or refused with the running one left as it
is: no request ever sees half of each, and one that has begun keeps the model, the price and the
upstreams that it began with. What stands under `[server]` and `[embedded]` is what the process was
started with; where the file says something else by now, that is told, and waits for a restart.

There are three ways to it: the file changes, or a key's file does (looked at once a second),
SIGHUP, or `tollway reload`.
"""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec
from msgspec import Struct

from tollway.api.admin.control import Commands
from tollway.errors import ConfigurationError, Refused, TollwayError, how_many
from tollway.settings import Embedded, Secret, Settings

LOOK_SECONDS = 0.55
AGAIN_SHARE = 0.6
"""A file that changed is taken once two looks in a row found it the same. The second comes after
this share of `LOOK_SECONDS`, so within a second of the change."""

Stamp = tuple[tuple[int, int, int] | None, ...]
"""Of each file: when it was written, its size, and which file it is; None where there is none."""

log = logging.getLogger("tollway.reload")

_encode = msgspec.json.Encoder(enc_hook=str, order="deterministic").encode


@dataclass(frozen=True, slots=True)
class ConfigurationFile:
    """`read` says what the file says now, with an `[embedded]` in place of its own where one is
    given. Raises `ConfigurationError`."""

    path: Path
    read: Callable[[Embedded | None], Settings]


class Changes(Struct, frozen=True):
    """Each by its key's path, with what was before and what is now. `live` are in place from now
    on, `after_restart` are not."""

    live: tuple[str, ...]
    after_restart: tuple[str, ...]


class Reloads(Protocol):
    """Counts them."""

    def reloaded(self, *, ok: bool) -> None: ...


class Reloader:
    """`adopt` puts settings in place, whole or not at all, and raises a `TollwayError` that says
    why not."""

    def __init__(
        self,
        file: ConfigurationFile | None,
        running: Settings,
        adopt: Callable[[Settings], Awaitable[None]],
        reloads: Reloads,
        *,
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        self._file = file
        self._running = running
        self._adopt = adopt
        self._reloads = reloads
        self._look_seconds = look_seconds
        self._one_at_a_time = asyncio.Lock()
        self._asked = asyncio.Event()
        self._looked_at: Stamp = ()
        self._judged: Stamp = ()

    @property
    def read_from(self) -> str:
        return "" if self._file is None else str(self._file.path.absolute())

    async def reload(self, *, unless_same: bool = False) -> Changes:
        """Raises a `TollwayError` that says what is wrong; what runs then stays. `unless_same`:
        where the file says what it said, nothing is told."""
        async with self._one_at_a_time:
            try:
                changes = await self._reload()
            except TollwayError as error:
                self._reloads.reloaded(ok=False)
                log.error("the configuration was refused, the running one stays: %s", error.message)
                raise
        if unless_same and not (changes.live or changes.after_restart):
            return changes
        self._reloads.reloaded(ok=True)
        log.info("the configuration was reloaded: %s", how_many(len(changes.live), "change"))
        for change in changes.live:
            log.info("changed: %s", change)
        for change in changes.after_restart:
            log.warning("changes after a restart: %s", change)
        for warning in self._running.warnings:
            log.warning("%s", warning)
        return changes

    def ask(self) -> None:
        """For a signal's handler: at the next look, which is now."""
        self._asked.set()

    async def watch(self) -> None:
        """Until it is cancelled. What is refused is in the log."""
        while True:
            with contextlib.suppress(TimeoutError):
                changes = self._looked_at != self._judged
                async with asyncio.timeout(self._look_seconds * (AGAIN_SHARE if changes else 1)):
                    await self._asked.wait()
            try:
                await self.look()
            except TollwayError:
                continue  # has been told
            except Exception:
                log.exception("a reload failed on a fault of the program")

    async def look(self) -> None:
        """Reloads where somebody has asked for it, or the file is another. Raises as `reload`."""
        if self._asked.is_set():
            self._asked.clear()
            await self.reload()
        elif self._file is not None and await self._is_another(self._file.path):
            await self.reload(unless_same=True)

    async def _is_another(self, path: Path) -> bool:
        """A file that was written since, and is not being written any more: half of one may be a
        configuration too, and is as it was for two looks in a row all but never."""
        stamp = await asyncio.to_thread(_stamp_of, (path, *self._running.key_files))
        before, self._looked_at = self._looked_at, stamp
        if stamp == self._judged or stamp != before:
            return False
        self._judged = stamp
        return True

    async def _reload(self) -> Changes:
        if self._file is None:
            raise Refused(
                "There is nothing to reload: the server was started without a configuration file. "
                "Start it with --config."
            )
        running = self._running
        wanted = await asyncio.to_thread(self._file.read, None)
        adopted = wanted
        if wanted.embedded != running.embedded:
            adopted = await asyncio.to_thread(_with_embedded, self._file, running.embedded)
        adopted = msgspec.structs.replace(adopted, server=running.server)
        changes = Changes(
            live=(
                *_differences("limits", running.limits, adopted.limits),
                *_in_tables(
                    "upstreams",
                    {one.name: one for one in running.upstreams},
                    {one.name: one for one in adopted.upstreams},
                ),
                *_in_tables(
                    "models",
                    {one.id: one for one in running.models},
                    {one.id: one for one in adopted.models},
                ),
            ),
            after_restart=(
                *_differences("server", running.server, wanted.server),
                *_differences("embedded", running.embedded, wanted.embedded),
            ),
        )
        if changes.live:
            await self._adopt(adopted)
        self._running = adopted
        return changes


def _with_embedded(file: ConfigurationFile, embedded: Embedded) -> Settings:
    try:
        return file.read(embedded)
    except ConfigurationError as error:
        raise ConfigurationError(
            f"{error.message} What the file says under [embedded] is in place after a restart "
            "alone."
        ) from None


def _stamp_of(paths: Iterable[Path]) -> Stamp:
    return tuple(_stamp_of_one(path) for path in paths)


def _stamp_of_one(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


# --- what has changed -----------------------------------------------------------------------------


def _in_tables(
    section: str, before: Mapping[str, Struct], after: Mapping[str, Struct]
) -> Iterator[str]:
    for name in before.keys() - after.keys():
        yield f"{section}.{name}: removed"
    for name, table in after.items():
        if name in before:
            yield from _differences(f"{section}.{name}", before[name], table)
        else:
            yield f"{section}.{name}: added"


def _differences(path: str, before: Struct, after: Struct) -> Iterator[str]:
    for field in before.__struct_fields__:
        old, new = getattr(before, field), getattr(after, field)
        if old == new:
            continue
        was, is_ = _shown(old), _shown(new)
        secret = isinstance(old, Secret) or isinstance(new, Secret) or was == is_
        yield f"{path}.{field}: another one" if secret else f"{path}.{field}: {was} -> {is_}"


def _shown(value: object) -> str:
    """Without what is secret in it."""
    return "none" if value is None else _encode(value).decode()


# --- the command ----------------------------------------------------------------------------------


class WithReload:
    """The operations, and the one that only a running server has."""

    def __init__(self, operations: Commands, reloader: Reloader) -> None:
        self._operations = operations
        self._reloader = reloader

    async def execute(
        self, command: str, arguments: Mapping[str, object], *, actor: str
    ) -> dict[str, object]:
        if command != "reload":
            return await self._operations.execute(command, arguments, actor=actor)
        log.info("%s asks for a reload", actor)
        changes = await self._reloader.reload()
        return {
            "file": self._reloader.read_from,
            "changes": changes.live,
            "afterRestart": changes.after_restart,
        }


# --- SIGHUP ---------------------------------------------------------------------------------------


class Terminal:
    """SIGHUP has two meanings. A daemon is asked to read its configuration again; a program in a
    terminal is told that the terminal is gone, and should go too."""

    def __init__(self) -> None:
        ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN  # by nohup
        self._had_one = not ignored and _has_terminal()
        self._shown_on = [fd for fd in (1, 2) if os.isatty(fd)]

    def is_gone(self) -> bool:
        """What is said from then on goes nowhere: it could not be written."""
        if not self._had_one or _has_terminal():
            return False
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for fd in self._shown_on:
            os.dup2(nowhere, fd)
        os.close(nowhere)
        return True


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True

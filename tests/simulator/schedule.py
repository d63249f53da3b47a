"""One integer -> a schedule: who comes when, what breaks when, when the process dies; and running
it."""

import asyncio
import gc
import logging
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from pathlib import Path
from random import Random
from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import replace
from tests.simulator.client import HostileClient, Plan, Talk, responses
from tests.simulator.judge import Figures, Judge, Life, rows_by_tag
from tests.simulator.loop import KilledError, StuckError, VirtualLoop, VirtualTime
from tests.simulator.process import (
    HostileDisk,
    Process,
    SimulatedDatabase,
    Template,
    time_of,
)
from tests.simulator.upstream import HostileUpstream
from tests.support.scratch import scratch_directory
from tests.unit.ledger.faults import FAILURES, Failure

from tollway.database.sqlite import connect
from tollway.errors import TollwayError
from tollway.ledger.verify import verify

BALANCES = (400_000, 1_300, 2_500)
PRICES = ((1_000_000, 2_000_000), (700_001, 4_300_001), (333, 1), (0, 5_000_000), (0, 0))
LIES = ("none", "zero", "negative", "huge", "text", "falling", "twice", "running")
DAY = 86_400.0
ROOM_BYTES = 32 * 1024**2
SETTLE_SECONDS = 120.0

Act = Literal[
    "top up", "take back", "refund", "freeze", "unfreeze", "revoke", "disk fails", "step clock"
]


class Deed(Struct, frozen=True):
    """What happens to the installation while requests run."""

    at: float
    act: Act
    account: int
    amount: int
    share: float
    failure: Failure
    seconds: float


class LifePlan(Struct, frozen=True):
    prices: tuple[int, int]
    clients: tuple[Plan, ...]
    deeds: tuple[Deed, ...]
    kill_at_step: int | None
    drain_seconds: float


class Schedule(Struct, frozen=True):
    seed: int
    lives: tuple[LifePlan, ...]
    concurrent_requests: int
    upstream_refuses: float
    upstream_drops_idle: float
    trusting: bool


class Verdict(Struct, frozen=True):
    seed: int
    complaints: list[str]
    figures: Figures
    story: list[str]


# --- making one -----------------------------------------------------------------------------------


def schedule_of(seed: int) -> Schedule:
    dice = Random(seed)
    count = dice.choice((1, 2, 2, 3))
    return Schedule(
        seed,
        tuple(_life(dice, last=number == count - 1) for number in range(count)),
        dice.choice((2, 50, 50)),
        dice.choice((0.0, 0.0, 0.2)),
        dice.choice((0.0, 0.0, 0.5)),
        dice.random() < 0.8,
    )


def _life(dice: Random, *, last: bool) -> LifePlan:
    burst = dice.random() < 0.15
    clients = _burst(dice) if burst else [_client(dice) for _ in range(dice.randint(1, 5))]
    deeds = tuple(_deed(dice) for _ in range(dice.choice((0, 0, 1, 2, 4))))
    killed = not last and dice.random() < 0.8
    return LifePlan(
        dice.choice(PRICES),
        tuple(clients),
        deeds,
        dice.choice((dice.randint(30, 300), dice.randint(100, 1500))) if killed else None,
        dice.choice((0.0, 1.0, 60.0)),
    )


def _burst(dice: Random) -> list[Plan]:
    """At once, and the balance does not suffice for all."""
    model = _client(dice)
    at, account = dice.random(), dice.choice((1, 2))
    return [
        replace(model, at=at, account=account, requests=1, directives=_directives(dice))
        for _ in range(dice.randint(4, 9))
    ]


def _client(dice: Random) -> Plan:
    leaves_at_bytes = dice.random() < 0.5
    return Plan(
        at=dice.random() * dice.choice((0.1, 3.0)),
        account=dice.choice((0, 0, 1, 2)),
        token=dice.choice((0, 0, 0, 1)),
        streams=dice.random() < 0.75,
        wants_usage=dice.random() < 0.4,
        trailers=dice.random() < 0.2,
        max_tokens=dice.choice((None, None, 1, 7, 30, 200, 1000)),
        choices=dice.choice((1, 1, 1, 1, 1, 2)),
        credits_max=dice.choice((None, None, None, None, 400, 700)),
        text_bytes=dice.choice((1, 15, 40, 200)),
        directives=_directives(dice),
        manner=dice.choice(
            ("stays", "stays", "stays", "leaves", "leaves", "leaves")
            if dice.random() < 0.8
            else ("never reads", "reads in fits")
        ),
        leaves_after_seconds=dice.random() * dice.choice((0.02, 0.5, 5.0)),
        leaves_after_bytes=dice.randint(1, 3000) if leaves_at_bytes else 0,
        requests=dice.choice((1, 1, 1, 2)),
        pipelined=dice.random() < 0.3,
        retries=dice.choice((0, 0, 1, 2)),
    )


def _directives(dice: Random) -> dict[str, Any]:
    told: dict[str, Any] = {
        "chunks": dice.choice((0, 1, 3, 12, 12, 30)),
        "input_tokens": dice.choice((3, 9, 40, 5000)),
    }
    pace = dice.choice((0, 0, 1, 30, 400))
    if pace:
        told["pace_ms"] = pace
    if dice.random() < 0.3:
        told["delay_ms"] = dice.choice((5, 300, 1900, 7000))
    if dice.random() < 0.5:
        told["usage"] = dice.choice(LIES)
    if dice.random() < 0.2:
        told["ignore_max_tokens"] = True
        told["chunks"] = dice.choice((40, 90))
    if dice.random() < 0.1:
        told["chunks"], told["pace_ms"], told["ignore_max_tokens"] = 120, 500, True  # never ends
    if dice.random() < 0.08:
        told["status"] = dice.choice((400, 401, 408, 429, 500, 503))
    if dice.random() < 0.06:
        told["finish"] = False
    if dice.random() < 0.06:
        told["done"] = False
    if dice.random() < 0.3:
        kind = dice.choice(("cut", "reset", "hang"))
        if dice.random() < 0.6:
            told[f"{kind}_at"] = dice.randint(0, 3500)
        else:
            told[f"{kind}_after"] = dice.randint(0, 12)
    return told


def _deed(dice: Random) -> Deed:
    acts: tuple[Act, ...] = (
        "top up", "take back", "refund", "refund", "freeze", "unfreeze", "revoke", "disk fails",
        "disk fails", "step clock",
    )  # fmt: skip
    return Deed(
        dice.random() * dice.choice((0.2, 2.0, 8.0)),
        dice.choice(acts),
        dice.randrange(len(BALANCES)),
        dice.randint(1, 900),
        dice.random() * 1.2,
        dice.choice(FAILURES),
        dice.choice((0.3, 1.0, 5.0)),
    )


# --- running one ----------------------------------------------------------------------------------


class Stage:
    """Where schedules run: one template for all of them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        place = directory / "template"
        place.mkdir()
        self.template = Template(place, BALANCES)
        self._runs = 0

    def run(self, seed: int) -> Verdict:
        self._runs += 1
        place = self._directory / str(self._runs)
        try:
            path = self.template.copy_to(place)
            return _Run(schedule_of(seed), self.template, path).play()
        finally:
            shutil.rmtree(place)


@contextmanager
def a_stage() -> Generator[Stage]:
    """Quiet: what the program logs on faults is not what is looked at."""
    logging.disable(logging.CRITICAL)
    gc.disable()  # dropped lives leave cycles; `Stage.run` is short, and its caller collects
    try:
        with tempfile.TemporaryDirectory(dir=scratch_directory(ROOM_BYTES)) as name:
            yield Stage(Path(name))
    finally:
        gc.collect()  # what a kill left suspended may still complain
        gc.enable()
        logging.disable(logging.NOTSET)


class _Run:
    def __init__(self, schedule: Schedule, template: Template, path: Path) -> None:
        self._schedule = schedule
        self._template = template
        self._path = path
        self._time = VirtualTime()
        self._dice = Random(schedule.seed + 1)
        self._upstream = HostileUpstream(
            self._dice, schedule.upstream_refuses, schedule.upstream_drops_idle
        )
        self._talks: list[Talk] = []
        self._lives: list[Life] = []
        self._complaints: list[str] = []
        self._added: list[tuple[str, int, str, int]] = []
        self._frozen: list[tuple[str, float]] = []
        self._unfrozen: set[str] = set()
        self._clock_stepped = False
        self.story: list[str] = []

    def play(self) -> Verdict:
        with time_of(self._time):
            for number, plan in enumerate(self._schedule.lives):
                self._live(number, plan)
            self._live(len(self._schedule.lives), _EPILOGUE)
        with closing(connect(self._path)) as connection:
            self._complaints += [f"verify: {violation}" for violation in verify(connection)]
            judge = Judge(rows_by_tag(connection), self._upstream.served)
            judge.judge(self._talks, self._lives, clock_stepped=self._clock_stepped)
            self._judge_deeds(connection)
        judge.figures.kills = sum(life.killed_at is not None for life in self._lives)
        complaints = self._complaints + judge.complaints
        return Verdict(self._schedule.seed, complaints, judge.figures, self.story)

    def _tell(self, words: str) -> None:
        self.story.append(f"{self._time.seconds:9.4f}  {words}")

    # --- one life ---------------------------------------------------------------------------------

    def _live(self, number: int, plan: LifePlan) -> None:
        loop = VirtualLoop(self._time, self._upstream)
        disk = HostileDisk()
        database = SimulatedDatabase(self._path, disk, self._dice)
        process = Process(
            loop, self._time, self._dice, database, self._schedule.concurrent_requests
        )
        life = Life(None, True)
        self._lives.append(life)
        self._tell(f"life {number} begins, prices {plan.prices}")
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(
                process.start(number, plan.prices, trusting=self._schedule.trusting)
            )
            if plan.kill_at_step is not None:
                loop.kill_at_step = loop.steps + plan.kill_at_step
            loop.run_until_complete(self._act_out(number, plan, process, disk, life))
            loop.kill_at_step = None
            loop.run_until_complete(self._end_well(plan, process, disk))
        except KilledError:
            life.killed_at = loop.time()
            self._tell("killed")
            database.drop()
            self._upstream.forget_all()
        except StuckError:
            self._complain(f"life {number}: something waits for what will never come")
        finally:
            self._complaints += [f"life {number}: {fault}" for fault in loop.faults]
            asyncio.set_event_loop(None)
            loop.drop()

    async def _act_out(
        self, number: int, plan: LifePlan, process: Process, disk: HostileDisk, life: Life
    ) -> None:
        clients = [
            self._be_a_client(number, index, client, process)
            for index, client in enumerate(plan.clients)
        ]
        deeds = [self._do(deed, process, disk, life) for deed in plan.deeds]
        await asyncio.gather(*clients, *deeds)

    async def _end_well(self, plan: LifePlan, process: Process, disk: HostileDisk) -> None:
        disk.failure, disk.journal_fails = None, False
        self._tell("SIGTERM")
        try:
            async with asyncio.timeout(SETTLE_SECONDS):
                await process.stop(plan.drain_seconds)
        except TimeoutError:
            self._complain("did not stop")
        if holds := process.ledger.open_holds():
            self._complain(f"holds are open after a good end: {holds}")
        if process.pipeline.running:
            self._complain(f"requests run after a good end: {process.pipeline.running}")
        for account in self._template.accounts:
            if (running := process.concurrency.running(account)) or process.ledger.held(account):
                self._complain(f"{account} has {running} places and holds after a good end")
        await asyncio.sleep(1.0)  # the last news of its end reaches the upstream
        if self._upstream.open_connections:
            self._complain(f"{self._upstream.open_connections} connections to the upstream left")
        current = asyncio.current_task()
        if left := [task for task in asyncio.all_tasks() if task is not current]:
            self._complain(f"tasks left: {left}")

    async def _be_a_client(self, life: int, index: int, plan: Plan, process: Process) -> None:
        await asyncio.sleep(plan.at)
        secret = self._template.secrets[plan.account][plan.token]
        for attempt in range(plan.retries + 1):
            tag = f"c{life}.{index}.{attempt}"
            client = HostileClient(plan)
            self._tell(f"{tag} {plan.manner}: {plan.body().decode():.400}")
            await client.run(process.accept, secret, tag, life, self._talks.append)
            replies = responses(client.received)
            statuses = [(r.status, "whole" if r.complete else "broken") for r in replies]
            self._tell(f"{tag} ended: {statuses}")
            whole = bool(replies) and replies[-1].complete and replies[-1].status < 500
            if whole and not plan.keyed:  # with a key it tries again all the same
                return
            await asyncio.sleep(0.05)

    # --- deeds ------------------------------------------------------------------------------------

    async def _do(self, deed: Deed, process: Process, disk: HostileDisk, life: Life) -> None:
        await asyncio.sleep(deed.at)
        self._tell(f"{deed.act}: account {deed.account}, {deed.amount}, {deed.failure}")
        if deed.act == "disk fails":
            life.calm = False
            disk.failure, disk.journal_fails = deed.failure, deed.share > 0.8
            await asyncio.sleep(deed.seconds)
            disk.failure, disk.journal_fails = None, False
        elif deed.act == "step clock":
            life.calm = False
            self._clock_stepped = True
            self._time.wall_offset += DAY if deed.share > 0.6 else -DAY
        else:
            await self._operate(deed, process)

    async def _operate(self, deed: Deed, process: Process) -> None:
        account = self._template.accounts[deed.account]
        operate: Callable[..., Any] = process.operations.execute
        try:
            match deed.act:
                case "top up":
                    fields = {"account": account, "amount": deed.amount}
                    self._note_entry(await operate("credit top-up", fields, actor="sim"))
                case "take back":
                    fields = {"account": account, "amount": -deed.amount, "reason": "mistake"}
                    self._note_entry(await operate("credit adjust", fields, actor="sim"))
                case "refund":
                    for request_id, amount in await self._refundable(process, deed.share):
                        fields = {"request_id": request_id, "amount": amount}
                        self._note_entry(await operate("credit refund", fields, actor="sim"))
                case "freeze":
                    await operate("account freeze", {"name": account}, actor="sim")
                    self._frozen.append((account, self._time.now()))
                case "unfreeze":
                    self._unfrozen.add(account)  # perhaps before the freeze is acknowledged
                    await operate("account unfreeze", {"name": account}, actor="sim")
                case _:
                    token = self._template.token_ids[deed.account][0]
                    await operate("token revoke", {"token_id": token}, actor="sim")
        except TollwayError as refusal:
            self._tell(f"{deed.act} was refused: {refusal}")

    async def _refundable(self, process: Process, share: float) -> list[tuple[str, int]]:
        """Twice the same, which must be refused; a share above one too."""
        rows = await process.database.fetch(
            "SELECT id, charged FROM holds WHERE charged > 0 ORDER BY id DESC LIMIT 1"
        )
        return [(id_, max(1, round(charged * share))) for id_, charged in rows] * 2

    def _note_entry(self, entry: dict[str, Any]) -> None:
        _, account, seq = entry["id"].split("_")
        self._added.append((f"acc_{account}", int(seq), entry["type"], entry["amount"]))

    def _judge_deeds(self, connection: sqlite3.Connection) -> None:
        for account, seq, kind, amount in self._added:
            found = connection.execute(
                "SELECT kind, amount FROM ledger WHERE account_id = ? AND seq = ?", (account, seq)
            ).fetchone()
            if found != (kind, amount):
                self._complain(f"an acknowledged {kind} of {amount} is lost, there is {found}")
        for account, since in self._frozen:
            if account not in self._unfrozen and not self._clock_stepped:
                (count,) = connection.execute(
                    "SELECT COUNT(*) FROM holds WHERE account_id = ? AND created_at > ?",
                    (account, since * 1000 + 1),
                ).fetchone()
                if count:
                    self._complain(f"{account} was frozen, and {count} requests began after it")

    def _complain(self, complaint: str) -> None:
        self._complaints.append(complaint)


_EPILOGUE = LifePlan(PRICES[0], (), (), None, 0.0)
"""A last start, which recovers what the life before it left."""

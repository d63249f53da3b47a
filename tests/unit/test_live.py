"""What a server offers follows from its settings, and others take effect whole or not at all."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.support.clock import FixedClock
from tests.support.upstream import StillUpstream
from tests.unit.api.admin.conftest import Office, open_office

from tollway.catalogue import Model, ModelOffer, Policy, Serving
from tollway.deadlines import Deadlines
from tollway.errors import ConfigurationError
from tollway.gateway.admit import Gate
from tollway.gateway.authenticate import Authenticator
from tollway.gateway.route import Router
from tollway.live import Live, limits_of, offers_of
from tollway.rates.concurrency import Concurrency
from tollway.rates.memory import MemoryRateLimiter
from tollway.settings import EMBEDDED, Settings, load_settings
from tollway.settings import Upstream as UpstreamSettings
from tollway.upstreams.dialects import DIALECTS
from tollway.upstreams.health import Health
from tollway.upstreams.places import Places
from tollway.upstreams.watched import Watched
from tollway.wire.requests import ParsedRequest

UPSTREAM = """
[[upstreams]]
name = "gpu-1"
base_url = "http://gpu-1.example/v1"
first_byte_seconds = 7
"""
MODEL = """
[[models]]
id = "m1"
prompt_rate = 700
completion_rate = 4000
context_length = 1000
max_output_tokens = 900
"""
SERVED = 'upstreams = [{ name = "gpu-1" }]\n'
ONE = UPSTREAM + MODEL + SERVED
TWO = ONE.replace('"gpu-1"', '"gpu-2"')


def settings_of(folder: Path, text: str) -> Settings:
    path = folder / "tollway.toml"
    path.write_text(text)
    return load_settings(path, for_serving=False)


# --- from settings to values ----------------------------------------------------------------------


def offer_of(folder: Path, model: str, upstream: str = "") -> ModelOffer:
    (offer,) = offers_of(settings_of(folder, UPSTREAM + upstream + MODEL + model))
    return offer


def test_a_model_is_offered_as_its_settings_say(tmp_path: Path) -> None:
    assert offer_of(tmp_path, "default_max_tokens = 800\n" + SERVED) == ModelOffer(
        id="m1",
        tier="custom",
        input_credits_per_million=700,
        output_credits_per_million=4000,
        context_length=1000,
        max_output_tokens=900,
        default_max_tokens=800,
        supported_parameters=None,
        confidential=False,
        servings=(Serving("gpu-1", "m1", weight=1, priority=0, deadlines=None),),
    )


def test_an_upstream_serves_a_model_with_what_is_its_own_there(tmp_path: Path) -> None:
    served = 'upstreams = [{ name = "gpu-1", weight = 3, priority = 2, connect_seconds = 1.5 }]\n'

    own = Deadlines(connect_seconds=1.5, first_byte_seconds=7)
    assert offer_of(tmp_path, served).servings == (Serving("gpu-1", "m1", 3, 2, own),)


@pytest.mark.parametrize(
    ("line", "policy"),
    [
        ('denied_parameters = ["seed"]\n', Policy(denied=frozenset({"seed"}))),
        ("defaults = { top_p = 0.5 }\n", Policy(defaults={"top_p": 0.5})),
        ("vision = true\nimage_tokens = 9\n", Policy(image_tokens=9)),
    ],
)
def test_each_of_what_a_model_asks_of_requests_is_asked(
    tmp_path: Path, line: str, policy: Policy
) -> None:
    asked = offer_of(tmp_path, line + SERVED).policy

    assert asked is not None
    assert (asked.denied, asked.defaults, asked.image_tokens) == (
        policy.denied,
        policy.defaults,
        policy.image_tokens,
    )


def test_of_the_fields_that_a_model_names_it_supports_what_its_server_understands(
    tmp_path: Path,
) -> None:
    assert "seed" in DIALECTS["anthropic"].dropped
    upstream = 'dialect = "anthropic"\n'

    offer = offer_of(tmp_path, 'supported_parameters = ["seed", "tools"]\n' + SERVED, upstream)

    assert offer.supported_parameters == {"tools"}


# --- other settings -------------------------------------------------------------------------------


class CountedUpstream(StillUpstream):
    """Counts its starts and stops. One that is `broken` does not start."""

    def __init__(self, name: str, *, broken: bool = False) -> None:
        super().__init__(name, runs=True)
        self.starts = self.stops = 0
        self._broken = broken

    async def start(self) -> None:
        self.starts += 1
        if self._broken:
            raise ConfigurationError("It does not start.")

    async def stop(self) -> None:
        self.stops += 1


@dataclass
class House:
    """A server by its parts, whose upstreams count."""

    folder: Path
    office: Office
    broken: str = ""
    checked: list[str] = field(default_factory=list[str])
    made: list[CountedUpstream] = field(default_factory=list[CountedUpstream])

    def __post_init__(self) -> None:
        settings, clock = settings_of(self.folder, ONE), FixedClock()
        office, limiter = self.office, MemoryRateLimiter(clock)
        self.embedded = CountedUpstream(EMBEDDED)
        watched = {"gpu-1": self._watch(settings.upstreams[0])}
        watched[EMBEDDED] = self._watched(self.embedded)
        self.router = Router(watched, clock, lambda: 0.5)
        self.authenticator = Authenticator(
            office.tokens,
            office.accounts,
            limiter,
            settings.limits.failed_authentications_per_minute,
            clock,
        )
        self.live = Live(
            settings,
            catalogue=office.catalogue,
            router=self.router,
            gate=Gate(
                office.catalogue,
                _not_counted,
                limiter,
                Concurrency(),
                office.ledger,
                limits_of(settings),
            ),
            authenticator=self.authenticator,
            operations=office.operations,
            database=office.database,
            clock=clock,
            watched=watched,
            watch=self._watch,
            check=self._check,
        )

    async def adopt(self, text: str) -> None:
        await self.live.adopt(settings_of(self.folder, text))

    def _watch(self, server: UpstreamSettings) -> Watched:
        self.made.append(CountedUpstream(server.name, broken=server.name == self.broken))
        return self._watched(self.made[-1])

    def _watched(self, upstream: CountedUpstream) -> Watched:
        return Watched(
            upstream, Health(upstream.name, FixedClock().monotonic, lambda: 0.5), Places()
        )

    async def _check(self, server: UpstreamSettings, one: Watched) -> None:
        self.checked.append(one.name)
        await asyncio.Event().wait()


def _not_counted(model: Model, parsed: ParsedRequest, most: int) -> None:
    del model, parsed, most


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    office = await open_office(tmp_path / "tollway.db")
    house = House(tmp_path, office)
    yield house
    await house.live.stop()
    await office.database.close()


async def test_settings_whose_upstream_does_not_start_change_nothing(house: House) -> None:
    house.broken = "gpu-3"
    third = UPSTREAM.replace("gpu-1", "gpu-3")

    with pytest.raises(ConfigurationError, match="does not start"):
        await house.adopt(TWO + third)

    _, second, broken = house.made
    assert (second.starts, second.stops, broken.stops) == (1, 1, 1)
    assert [one.name for one in house.router.upstreams()] == ["gpu-1", EMBEDDED]


async def test_the_embedded_model_goes_on(house: House) -> None:
    embedded = '[[models]]\nid = "e"\ntier = "budget"\nupstreams = [{ name = "embedded" }]\n'

    await house.adopt(ONE + embedded)
    await house.adopt(ONE + embedded + "context_length = 512\n")

    assert EMBEDDED in [one.name for one in house.router.upstreams()]
    assert (house.embedded.starts, house.embedded.stops) == (0, 0)


async def test_an_upstream_is_checked_once_however_often_others_change(house: House) -> None:
    house.live.start_checks()
    await house.adopt("[limits]\nstarting_credits = 7\n" + ONE)
    await house.adopt(ONE)
    await asyncio.sleep(0)

    assert house.checked == ["gpu-1"]


async def test_how_many_authentications_may_fail_changes(house: House) -> None:
    await house.adopt("[limits]\nfailed_authentications_per_minute = 3\n" + ONE)

    assert house.authenticator.failures_per_minute == 3


async def test_an_upstream_that_was_taken_out_stops_once_and_not_before_who_is_admitted_has_come(
    house: House,
) -> None:
    (gone,) = house.made
    await house.adopt(TWO)
    await asyncio.sleep(0)  # a request whose admission read the disk comes about now
    assert not gone.stops

    async with asyncio.timeout(5):
        while not gone.stops:  # noqa: ASYNC110 (it tells nobody but the log)
            await asyncio.sleep(0.05)

    await house.live.stop()

    assert [one.stops for one in house.made] == [1, 1]


async def test_what_was_taken_out_and_runs_still_stops_with_the_server(house: House) -> None:
    (gone,) = house.made
    house.live.start_checks()
    await house.adopt(TWO)

    await house.live.stop()
    await asyncio.sleep(0)

    assert gone.stops == 1
    assert asyncio.all_tasks() == {asyncio.current_task()}

import msgspec
import pytest
from msgspec.structs import astuple
from tests.support.clock import FixedClock

from tollway.catalogue import Catalogue, ModelOffer, Price, Serving
from tollway.database.sqlite import SqliteDatabase
from tollway.errors import NotFound


def an_offer(id: str = "acme/parrot", rates: tuple[int, int] = (700, 4000)) -> ModelOffer:
    return ModelOffer(
        id=id,
        tier="budget",
        input_credits_per_million=rates[0],
        output_credits_per_million=rates[1],
        context_length=4096,
        max_output_tokens=512,
        default_max_tokens=256,
        supported_parameters=None,
        confidential=False,
        servings=(Serving("gpu-1", "parrot"),),
    )


async def test_a_model_is_found_with_its_price(database: SqliteDatabase) -> None:
    catalogue = await Catalogue.load([an_offer()], database, FixedClock())
    model = catalogue.find("acme/parrot", None)

    assert (model.owned_by, model.name, model.tier) == ("acme", "parrot", "budget")
    assert model.price.input_credits_per_million == 700
    assert model.price.output_credits_per_million == 4000
    assert "acme/parrot" in catalogue


async def test_a_price_that_has_not_changed_keeps_its_row(database: SqliteDatabase) -> None:
    clock = FixedClock()
    before = (await Catalogue.load([an_offer()], database, clock)).find("acme/parrot", None)
    clock.advance(60)
    after = (await Catalogue.load([an_offer()], database, clock)).find("acme/parrot", None)

    assert after == before


async def test_a_price_that_has_changed_is_a_new_row_and_the_old_one_stays(
    database: SqliteDatabase,
) -> None:
    clock = FixedClock()
    prices: list[str] = []
    for rates in ((700, 4000), (800, 4000), (700, 4000)):
        catalogue = await Catalogue.load([an_offer(rates=rates)], database, clock)
        prices.append(catalogue.find("acme/parrot", None).price.id)
        clock.advance(1)

    rows = await database.fetch("SELECT id, prompt_rate FROM prices ORDER BY id")
    assert rows == list(zip(prices, (700, 800, 700), strict=True))
    model = catalogue.find("acme/parrot", None)
    assert model.created_at == FixedClock().now()


async def test_a_price_of_cached_tokens_or_reasoning_is_part_of_the_price(
    database: SqliteDatabase,
) -> None:
    clock = FixedClock()
    plain = an_offer()
    offers = [
        plain,
        msgspec.structs.replace(plain, cached_credits_per_million=70),
        msgspec.structs.replace(plain, cached_credits_per_million=70),
        msgspec.structs.replace(
            plain, cached_credits_per_million=0, reasoning_credits_per_million=9000
        ),
        plain,
    ]
    prices: list[Price] = []
    for offer in offers:
        catalogue = await Catalogue.load([offer], database, clock)
        prices.append(catalogue.find("acme/parrot", None).price)
        clock.advance(1)

    assert [astuple(price)[3:] for price in prices] == [
        (None, None),
        (70, None),
        (70, None),
        (0, 9000),
        (None, None),
    ]
    assert prices[1] == prices[2]
    assert len({price.id for price in prices}) == 4


async def test_a_hold_is_reckoned_at_the_dearest_of_the_rates(database: SqliteDatabase) -> None:
    offer = msgspec.structs.replace(
        an_offer(), cached_credits_per_million=70, reasoning_credits_per_million=9000
    )
    catalogue = await Catalogue.load([offer, an_offer("plain")], database, FixedClock())
    model, plain = catalogue.find("acme/parrot", None), catalogue.find("plain", None)

    assert model.price_max == Price(model.price.id, 700, 9000)
    assert plain.price_max is plain.price


async def test_unknown_and_not_allowed_are_one_answer(database: SqliteDatabase) -> None:
    offers = [an_offer(), an_offer("plain")]
    catalogue = await Catalogue.load(offers, database, FixedClock())
    allowed = frozenset({"plain"})

    answers: set[str] = set()
    for model_id in ("acme/parrot", "acme/nobody"):
        with pytest.raises(NotFound) as refused:
            catalogue.find(model_id, allowed)
        assert (refused.value.code, refused.value.param) == ("model_not_found", "model")
        answers.add(refused.value.message.replace(model_id, ""))
    assert len(answers) == 1
    assert catalogue.find("plain", allowed).owned_by == "tollway"
    assert [model.id for model in catalogue.list(allowed)] == ["plain"]
    assert len(catalogue.list(None)) == 2

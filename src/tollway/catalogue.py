"""The models on offer: what each is called, what it costs, and which upstreams serve it.

Prices are rows that are only ever added: a request keeps the price it began with, and a receipt can
be recomputed years later. `Catalogue.load` adds a row where the configuration's price differs from
the newest one.
"""

from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec
from msgspec import Struct

from tollway.clock import Clock, new_id
from tollway.database.base import Database
from tollway.deadlines import Deadlines
from tollway.errors import NotFound

Sticky = Literal["header", "prefix"]
"""By what requests are kept on one upstream: a header of the client's, or how the conversation
begins."""


class Price(Struct, frozen=True, gc=False):
    """Input that the upstream had cached and output that was reasoning may have rates of their own;
    None: they cost as the rest does."""

    id: str
    input_credits_per_million: int
    output_credits_per_million: int
    cached_credits_per_million: int | None = None
    reasoning_credits_per_million: int | None = None

    def dearest(self) -> "Price":
        """Each part at the highest of its rates: what a hold is reckoned at, for nobody knows
        before what will be cached or reasoning."""
        cached, reasoning = self.cached_credits_per_million, self.reasoning_credits_per_million
        if cached is None and reasoning is None:
            return self
        return Price(
            self.id,
            max(self.input_credits_per_million, 0 if cached is None else cached),
            max(self.output_credits_per_million, 0 if reasoning is None else reasoning),
        )


class Serving(Struct, frozen=True, gc=False):
    """One upstream that serves a model, and what it calls it there. Those of a higher `priority`
    number are asked where none of a lower one can serve. `deadlines` are for this model, in place
    of the upstream's own."""

    upstream: str
    model: str
    weight: int = 1
    priority: int = 0
    deadlines: Deadlines | None = None


class Policy(Struct, frozen=True, kw_only=True):
    """What a model asks of requests beyond the fields that it supports. `image_tokens` is the most
    that one image counts as; None: it takes none. `dearer_tiers`: its price covers the tiers of
    service that cost more."""

    denied: frozenset[str] = frozenset()
    defaults: Mapping[str, object] = {}
    image_tokens: int | None = None
    image_bytes_max: int = 0
    dearer_tiers: bool = False


class Model(Struct, frozen=True):
    """`supported_parameters` None means all. `max_output_tokens` and `default_max_tokens` are
    tokens a choice; `price_max` is the price at its dearest; `sticky` None means that any upstream
    will do."""

    id: str
    name: str
    tier: str
    price: Price
    price_max: Price
    context_length: int
    max_output_tokens: int
    default_max_tokens: int
    supported_parameters: frozenset[str] | None
    confidential: bool
    servings: tuple[Serving, ...]
    created_at: float
    owned_by: str
    sticky: Sticky | None = None
    policy: Policy | None = None


class ModelOffer(Struct, frozen=True):
    """A model as the configuration gives it, its price not yet a row."""

    id: str
    tier: str
    input_credits_per_million: int
    output_credits_per_million: int
    context_length: int
    max_output_tokens: int
    default_max_tokens: int
    supported_parameters: frozenset[str] | None
    confidential: bool
    servings: tuple[Serving, ...]
    cached_credits_per_million: int | None = None
    reasoning_credits_per_million: int | None = None
    sticky: Sticky | None = None
    policy: Policy | None = None


class Catalogue:
    def __init__(self) -> None:
        self._models: dict[str, Model] = {}

    @classmethod
    async def load(
        cls, offers: Iterable[ModelOffer], database: Database, clock: Clock
    ) -> "Catalogue":
        newest: dict[str, tuple[Price, float]] = {}
        first_seen: dict[str, float] = {}
        rows = await database.fetch(
            "SELECT model, created_at, id, prompt_rate, completion_rate, cached_prompt_rate,"
            " reasoning_rate FROM prices ORDER BY created_at, id"
        )
        for model, created_at, *price_row in rows:
            newest[model] = (Price(*price_row), created_at / 1000)
            first_seen.setdefault(model, created_at / 1000)
        catalogue = cls()
        for offer in offers:
            now = clock.now()
            known = newest[offer.id][0] if offer.id in newest else None
            price = Price(
                "" if known is None else known.id,
                offer.input_credits_per_million,
                offer.output_credits_per_million,
                offer.cached_credits_per_million,
                offer.reasoning_credits_per_million,
            )
            if price != known:
                price = msgspec.structs.replace(price, id=new_id("price", now))
                id_, *rates = msgspec.structs.astuple(price)
                await database.execute(
                    (
                        "INSERT INTO prices (id, model, prompt_rate, completion_rate,"
                        " cached_prompt_rate, reasoning_rate, created_at)"
                        " VALUES (?, ?, ?, ?, ?, ?, ?)",
                        (id_, offer.id, *rates, int(now * 1000)),
                    )
                )
            catalogue._models[offer.id] = _model(offer, price, first_seen.get(offer.id, now))
        return catalogue

    def put(self, other: "Catalogue") -> None:
        """What the other one has is on offer from now on, and nothing else. A model that has not
        changed stays the very same; a request that has begun keeps its own."""
        self._models = {
            id_: _kept(self._models.get(id_), model) for id_, model in other._models.items()
        }

    def find(self, model_id: str, allowed: frozenset[str] | None) -> Model:
        """`allowed` are the models that the token may use (None: all). Raises `NotFound` alike for
        unknown and not allowed."""
        model = self._models.get(model_id)
        if model is None or (allowed is not None and model_id not in allowed):
            raise NotFound(
                f"There is no model {model_id!r:.200} for this token. "
                "GET /models lists those there are.",
                code="model_not_found",
                param="model",
            )
        return model

    def list(self, allowed: frozenset[str] | None) -> list[Model]:
        return [m for m in self._models.values() if allowed is None or m.id in allowed]

    def __contains__(self, model_id: str) -> bool:
        return model_id in self._models


def _kept(before: Model | None, after: Model) -> Model:
    if before is None:
        return after
    # The first time it was on offer is known to the microsecond until it is read from its row.
    after = msgspec.structs.replace(after, created_at=before.created_at)
    return before if after == before else after


def _model(offer: ModelOffer, price: Price, created_at: float) -> Model:
    owner, _, name = offer.id.rpartition("/")
    return Model(
        id=offer.id,
        name=name,
        tier=offer.tier,
        price=price,
        price_max=price.dearest(),
        context_length=offer.context_length,
        max_output_tokens=offer.max_output_tokens,
        default_max_tokens=offer.default_max_tokens,
        supported_parameters=offer.supported_parameters,
        confidential=offer.confidential,
        servings=offer.servings,
        created_at=created_at,
        owned_by=owner or "tollway",
        sticky=offer.sticky,
        policy=offer.policy,
    )

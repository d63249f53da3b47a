"""Model -> the upstream that serves it, and what it is asked."""

from collections.abc import Mapping

from tollway.catalogue import Model
from tollway.errors import Unavailable
from tollway.gateway.types import Admission, Route
from tollway.ledger.base import Outcome, Settlement
from tollway.upstreams.base import Ask, Upstream
from tollway.upstreams.trust import Trust
from tollway.wire.requests import OPTIONAL_FIELDS, ParsedRequest


class Router:
    """Without `trust` every upstream is believed."""

    def __init__(self, upstreams: Mapping[str, Upstream], trust: Trust | None = None) -> None:
        self._upstreams = upstreams
        self._trust = trust

    def ready(self, upstream: str) -> bool:
        """Whether a request sent to it now has a chance."""
        aside = self._trust is not None and self._trust.seconds_aside(upstream) > 0
        return self._upstreams[upstream].ready() and not aside

    def settled(self, outcome: Outcome, settlement: Settlement) -> None:
        """What an upstream reported decides whether it is asked again."""
        if self._trust is None or outcome.upstream is None or outcome.source != "upstream":
            return
        self._trust.reported(outcome.upstream, settlement.shortfall)

    def route(self, admission: Admission) -> Route:
        """Raises `Unavailable` where the upstream is set aside."""
        return self._route(
            admission.model,
            admission.parsed,
            admission.call.request_id,
            admission.cost.output_tokens_max,
        )

    async def count_input_tokens(
        self, model: Model, parsed: ParsedRequest, output_tokens_max: int
    ) -> int | None:
        """By the model's own tokenizer, where its upstream can be asked cheaply. Comes before the
        hold, so a request for an upstream that is set aside is refused (`Unavailable`) here."""
        route = self._route(model, parsed, "", output_tokens_max)
        return await route.upstream.count_input_tokens(route.ask)

    def _route(
        self, model: Model, parsed: ParsedRequest, request_id: str, output_tokens_max: int
    ) -> Route:
        serving = model.servings[0]
        self._require_trusted(serving.upstream)
        fields = parsed.fields
        if model.supported_parameters is not None:
            fields = {
                name: value
                for name, value in fields.items()
                if name not in OPTIONAL_FIELDS or name in model.supported_parameters
            }
        ask = Ask(request_id, serving.model, fields, output_tokens_max)
        return Route(self._upstreams[serving.upstream], serving, ask)

    def _require_trusted(self, upstream: str) -> None:
        aside_seconds = 0.0 if self._trust is None else self._trust.seconds_aside(upstream)
        if aside_seconds > 0:
            raise Unavailable(
                "The model's server has reported more than it was allowed to use, and is not asked "
                f"for {aside_seconds:.0f} s. Try again then, or use another model.",
                retry_after_seconds=aside_seconds,
            )

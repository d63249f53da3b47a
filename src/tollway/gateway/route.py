"""Model -> the upstream that serves it, and what it is asked."""

from collections.abc import Mapping

from tollway.catalogue import Model
from tollway.gateway.types import Admission, Route
from tollway.upstreams.base import Ask, Upstream
from tollway.wire.requests import OPTIONAL_FIELDS, ParsedRequest


class Router:
    def __init__(self, upstreams: Mapping[str, Upstream]) -> None:
        self._upstreams = upstreams

    def route(self, admission: Admission) -> Route:
        return self._route(
            admission.model,
            admission.parsed,
            admission.call.request_id,
            admission.cost.output_tokens_max,
        )

    async def count_input_tokens(
        self, model: Model, parsed: ParsedRequest, output_tokens_max: int
    ) -> int | None:
        """By the model's own tokenizer, where its upstream can be asked cheaply."""
        route = self._route(model, parsed, "", output_tokens_max)
        return await route.upstream.count_input_tokens(route.ask)

    def _route(
        self, model: Model, parsed: ParsedRequest, request_id: str, output_tokens_max: int
    ) -> Route:
        serving = model.servings[0]
        fields = parsed.fields
        if model.supported_parameters is not None:
            fields = {
                name: value
                for name, value in fields.items()
                if name not in OPTIONAL_FIELDS or name in model.supported_parameters
            }
        ask = Ask(request_id, serving.model, fields, output_tokens_max)
        return Route(self._upstreams[serving.upstream], serving, ask)

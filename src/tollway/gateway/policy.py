"""What a model asks of requests: parameters that are denied, fields that it is not sent, values
where the client names none, images, and tiers of service that cost more.

An image counts in the prompt's bound as the most tokens that one can be (`image_tokens`), which is
what makes it have a price; a model without that takes none.
"""

from collections.abc import Mapping

from tollway.catalogue import Model, Policy
from tollway.errors import InvalidRequest
from tollway.gateway.types import Caller
from tollway.wire.images import image_fault
from tollway.wire.requests import OPTIONAL_FIELDS, ParsedRequest

DEARER_SERVICE_TIERS = frozenset({"fast", "priority"})
"""For which upstreams bill about twice the price (https://openai.com/api-priority-processing)."""


def require_allowed(model: Model, parsed: ParsedRequest) -> None:
    """Raises `InvalidRequest` for a denied parameter, for an image that the model does not take or
    that may not be sent, and for a tier of service that has no price."""
    policy = model.policy
    if policy is not None and policy.denied:
        for name in parsed.fields:
            if name in policy.denied:
                raise InvalidRequest(
                    f"{name} is not allowed for {model.id}. Leave it out.",
                    code="unsupported_parameter",
                    param=name,
                )
    if parsed.request.service_tier in DEARER_SERVICE_TIERS:
        _require_priced_tier(model, policy, parsed.request.service_tier)
    if parsed.images:
        _require_images(model, policy, parsed)


def _require_priced_tier(model: Model, policy: Policy | None, tier: str) -> None:
    supported = model.supported_parameters
    is_passed_on = supported is None or "service_tier" in supported
    if is_passed_on and not (policy is not None and policy.dearer_tiers):
        raise InvalidRequest(
            f'service_tier "{tier}" costs more, and has no price for {model.id}. Leave it out.',
            code="unsupported_parameter",
            param="service_tier",
        )


def _require_images(model: Model, policy: Policy | None, parsed: ParsedRequest) -> None:
    if policy is None or policy.image_tokens is None:
        path = parsed.images[0].path
        raise InvalidRequest(
            f"{path}: images have no price for {model.id}. Send text, or use a model whose "
            "capabilities have vision.",
            code="unsupported_parameter",
            param=path,
        )
    for image in parsed.images:
        fault = image_fault(image.url, policy.image_bytes_max)
        if fault is not None:
            raise InvalidRequest(f"{image.path}.image_url.url {fault}.", param=image.path)


def ignored_fields(caller: Caller, model: Model, parsed: ParsedRequest) -> tuple[str, ...]:
    """What the model is not sent. Raises `InvalidRequest` for a token that is strict about it."""
    ignored = parsed.unknown
    if (supported := model.supported_parameters) is not None:
        ignored += tuple(f for f in parsed.fields if f in OPTIONAL_FIELDS and f not in supported)
    if ignored and caller.token.strict:
        raise InvalidRequest(
            f"This token is strict, and {ignored[0]:.100} is not supported by {model.id}. "
            "Leave it out.",
            code="unsupported_parameter",
            param=ignored[0][:100],
        )
    return ignored


def images_bound(model: Model, parsed: ParsedRequest) -> int:
    """What to add to the prompt's bound by bytes: an image counts as tokens, and not by its
    base64."""
    return images_tokens(model, parsed) - sum(len(image.url) for image in parsed.images)


def images_tokens(model: Model, parsed: ParsedRequest) -> int:
    """The most that a request's images count as."""
    policy = model.policy
    if policy is None or policy.image_tokens is None:
        return 0
    return len(parsed.images) * policy.image_tokens


def with_defaults(policy: Policy, fields: Mapping[str, object]) -> Mapping[str, object]:
    """The client's word goes first."""
    added = {name: value for name, value in policy.defaults.items() if name not in fields}
    if "tools" not in fields:
        added.pop("parallel_tool_calls", None)  # servers refuse it without tools
    return {**fields, **added} if added else fields

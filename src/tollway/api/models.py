"""The models that a token may use, in the shape of OpenAI's API with what a buyer wants to know."""

from typing import Any, Literal

from msgspec import Struct

from tollway.api.operation import Answer, Asked
from tollway.catalogue import Model, Policy, Price
from tollway.wire.requests import KNOWN_FIELDS, OPTIONAL_FIELDS

# Every request has them, so they are no parameters that one model has and another lacks.
_REQUIRED_FIELDS = frozenset({"model", "messages"})


class Pricing(Struct, frozen=True):
    """Whole credits per million tokens. Of the prompt, what the upstream had cached, and of the
    completion what was reasoning, have the rates after those two."""

    prompt: int
    completion: int
    cached_prompt: int
    reasoning: int


class Capabilities(Struct, frozen=True):
    streaming: bool
    tools: bool
    json_object: bool
    json_schema: bool
    logprobs: bool
    reasoning: bool
    vision: bool


class ModelObject(Struct, frozen=True):
    """`default_parameters` are the values where a request names none; `image_tokens` is the most
    that an image counts as in the prompt, null where the model takes none."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    name: str
    context_length: int
    max_output_tokens: int
    tier: str
    pricing: Pricing
    supported_parameters: list[str]
    default_parameters: dict[str, Any]
    image_tokens: int | None
    capabilities: Capabilities
    confidential: bool


class ModelList(Struct, frozen=True):
    object: Literal["list"]
    data: list[ModelObject]


async def list_models(asked: Asked) -> Answer:
    await asked.take_place()
    models = asked.parts.catalogue.list(asked.caller.token.models)
    return Answer(ModelList("list", [model_object(model) for model in models]))


async def show_model(asked: Asked) -> Answer:
    model = asked.parts.catalogue.find(asked.path["model_id"], asked.caller.token.models)
    await asked.take_place()
    return Answer(model_object(model))


def model_object(model: Model) -> ModelObject:
    optional = model.supported_parameters
    taken = OPTIONAL_FIELDS if optional is None else optional
    policy = Policy() if model.policy is None else model.policy
    taken -= policy.denied
    parameters = (KNOWN_FIELDS - OPTIONAL_FIELDS - _REQUIRED_FIELDS) | taken
    formats = "response_format" in parameters
    return ModelObject(
        id=model.id,
        object="model",
        created=int(model.created_at),
        owned_by=model.owned_by,
        name=model.name,
        context_length=model.context_length,
        max_output_tokens=model.max_output_tokens,
        tier=model.tier,
        pricing=_pricing(model.price),
        supported_parameters=sorted(parameters),
        default_parameters=dict(policy.defaults),
        image_tokens=policy.image_tokens,
        capabilities=Capabilities(
            streaming=True,
            tools="tools" in parameters,
            json_object=formats,
            json_schema=formats,
            logprobs="logprobs" in parameters,
            reasoning="reasoning_effort" in parameters,
            vision=policy.image_tokens is not None,
        ),
        confidential=model.confidential,
    )


def _pricing(price: Price) -> Pricing:
    prompt, completion = price.input_credits_per_million, price.output_credits_per_million
    cached, reasoning = price.cached_credits_per_million, price.reasoning_credits_per_million
    return Pricing(
        prompt,
        completion,
        prompt if cached is None else cached,
        completion if reasoning is None else reasoning,
    )

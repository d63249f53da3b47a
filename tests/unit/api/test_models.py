import msgspec
from tests.support.api import MODEL, PLAIN_MODEL, Api

from tollway.api.models import Capabilities, Pricing, model_object
from tollway.catalogue import Policy, Price


async def test_a_model_shows_what_it_costs_and_takes(api: Api) -> None:
    reply = await api.get("/v1/models", api.secret)
    parrot, plain = reply.json()["data"]
    assert reply.json()["object"] == "list"
    assert parrot.pop("supported_parameters") >= ["frequency_penalty"]
    assert parrot == {
        "id": MODEL,
        "object": "model",
        "created": int(api.clock.now()),
        "owned_by": "acme",
        "name": "parrot",
        "context_length": 1000,
        "max_output_tokens": 400,
        "tier": "budget",
        "pricing": {
            "prompt": 1_000_000,
            "completion": 2_000_000,
            "cached_prompt": 1_000_000,
            "reasoning": 2_000_000,
        },
        "capabilities": {
            "streaming": True,
            "tools": True,
            "json_object": True,
            "json_schema": True,
            "logprobs": True,
            "reasoning": True,
            "vision": False,
        },
        "default_parameters": {},
        "image_tokens": None,
        "confidential": False,
    }
    assert "temperature" in plain["supported_parameters"]
    assert "max_tokens" in plain["supported_parameters"]
    assert not {"tools", "model", "messages"} & set(plain["supported_parameters"])
    assert plain["capabilities"]["tools"] is False


async def test_a_model_shows_what_it_lacks_denies_and_has_a_rate_of_its_own_for(api: Api) -> None:
    policy = Policy(
        denied=frozenset({"seed"}),
        defaults={"temperature": 0.5},
        image_tokens=85,
        image_bytes_max=100,
    )
    model = msgspec.structs.replace(
        api.model(),
        supported_parameters=frozenset({"user", "tools", "seed"}),
        confidential=True,
        price=Price("price_1", 7, 9, 0, 0),
        policy=policy,
    )

    shown = model_object(model)

    assert shown.pricing == Pricing(prompt=7, completion=9, cached_prompt=0, reasoning=0)
    assert shown.capabilities == Capabilities(
        streaming=True,
        tools=True,
        json_object=False,
        json_schema=False,
        logprobs=False,
        reasoning=False,
        vision=True,
    )
    assert shown.supported_parameters == sorted(shown.supported_parameters)
    assert {"tools", "user"} <= set(shown.supported_parameters)
    assert "seed" not in shown.supported_parameters
    assert (shown.default_parameters, shown.image_tokens) == ({"temperature": 0.5}, 85)
    assert shown.confidential


async def test_one_model_is_shown_as_in_the_list(api: Api) -> None:
    listed = (await api.get("/v1/models", api.secret)).json()["data"][0]
    raw = await api.get("/v1/models/acme/parrot", api.secret)
    encoded = await api.get("/v1/models/acme%2Fparrot", api.secret)
    assert raw.json() == encoded.json() == listed


async def test_a_token_sees_only_the_models_that_it_may_use(api: Api) -> None:
    _, secret = await api.issue(models=[PLAIN_MODEL])
    listed = await api.get("/v1/models", secret)
    refused = await api.get("/v1/models/acme/parrot", secret)
    unknown = await api.get("/v1/models/acme/nothing", secret)
    assert [model["id"] for model in listed.json()["data"]] == [PLAIN_MODEL]
    assert (refused.status, refused.code, refused.param) == (404, "model_not_found", "model")
    assert (unknown.status, unknown.code, unknown.param) == (404, "model_not_found", "model")

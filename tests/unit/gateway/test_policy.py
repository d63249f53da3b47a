from typing import Any

import pytest
from tests.support.builders import a_tool, chat_bytes, data_url, image_part, message
from tests.unit.gateway.door import Door
from tests.unit.gateway.parts import a_caller, a_model
from tests.unit.ledger.books import Books

from tollway.catalogue import Policy
from tollway.errors import InvalidRequest
from tollway.gateway.policy import images_bound, images_tokens, require_allowed, with_defaults
from tollway.gateway.prompt import prompt_bound
from tollway.wire.requests import ParsedRequest, parse_chat_request

SEES = a_model(policy=Policy(image_tokens=1000, image_bytes_max=100))
TEXT = {"type": "text", "text": "What is this?"}


def parsed(**fields: Any) -> ParsedRequest:
    return parse_chat_request(chat_bytes(**fields))


def an_image_request(*urls: str | None) -> ParsedRequest:
    return parsed(messages=[message([TEXT, *(image_part(url) for url in urls)])])


def refusal(model: Any, request: ParsedRequest) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as refused:
        require_allowed(model, request)
    return refused.value


# --- denied parameters ----------------------------------------------------------------------------


def test_a_denied_parameter_is_refused_with_the_mend() -> None:
    model = a_model(policy=Policy(denied=frozenset({"logit_bias", "tools"})))

    require_allowed(model, parsed(seed=1))
    refused = refusal(model, parsed(seed=1, logit_bias={"5": 1}))

    assert (refused.code, refused.param) == ("unsupported_parameter", "logit_bias")
    assert refused.message == "logit_bias is not allowed for m1. Leave it out."


def test_a_denied_parameter_that_is_null_is_absent() -> None:
    model = a_model(policy=Policy(denied=frozenset({"seed"})))

    require_allowed(model, parsed(seed=None))

    assert refusal(model, parsed(seed=1)).param == "seed"


# --- tiers of service -----------------------------------------------------------------------------


@pytest.mark.parametrize("tier", ["fast", "priority"])
def test_a_dearer_tier_of_service_has_no_price_unless_the_operator_names_it(tier: str) -> None:
    request = parsed(service_tier=tier)

    refused = refusal(a_model(), request)
    assert (refused.code, refused.param) == ("unsupported_parameter", "service_tier")
    assert refused.message == (
        f'service_tier "{tier}" costs more, and has no price for m1. Leave it out.'
    )
    understood = a_model(supported_parameters=frozenset({"service_tier"}))
    assert refusal(understood, request).param == "service_tier"
    require_allowed(a_model(policy=Policy(dearer_tiers=True)), request)
    require_allowed(a_model(supported_parameters=frozenset({"seed"})), request)  # it is left out


@pytest.mark.parametrize("tier", ["auto", "default", "flex", "scale"])
def test_other_tiers_of_service_cost_no_more(tier: str) -> None:
    require_allowed(a_model(), parsed(service_tier=tier))


# --- fields that a model does not support ---------------------------------------------------------


async def test_fields_that_are_not_supported_are_named(books: Books) -> None:
    door = Door(books, a_model(supported_parameters=frozenset({"temperature"})))
    admission = await door.admit(temperature=1, seed=5, top_k=3, n=1, stream=False)
    assert set(admission.ignored) == {"seed", "top_k"}


async def test_all_fields_are_supported_unless_the_model_says_which(door: Door) -> None:
    assert (await door.admit(temperature=1, seed=5, top_k=3)).ignored == ("top_k",)


@pytest.mark.parametrize("fields", [{"top_k": 3}, {"seed": 5}])
async def test_a_strict_token_is_refused_instead(books: Books, fields: dict[str, Any]) -> None:
    door = Door(books, a_model(supported_parameters=frozenset({"temperature"})))
    refused = await door.refusal(a_caller(strict=True), **fields)
    assert (refused.code, refused.param) == ("unsupported_parameter", next(iter(fields)))
    await door.admit(a_caller(strict=True), temperature=1)


# --- images ---------------------------------------------------------------------------------------


def test_a_model_without_a_price_for_images_takes_none() -> None:
    for model in (a_model(), a_model(policy=Policy(denied=frozenset({"seed"})))):
        refused = refusal(model, an_image_request(None))
        assert (refused.code, refused.param) == (
            "unsupported_parameter",
            "messages[0].content[1]",
        )
        assert "no price" in refused.message


def test_a_model_that_sees_takes_images() -> None:
    request = an_image_request(None, None)

    require_allowed(SEES, request)

    assert [image.path for image in request.images] == [
        "messages[0].content[1]",
        "messages[0].content[2]",
    ]
    assert images_tokens(SEES, request) == 2 * 1000


@pytest.mark.parametrize("url", ["https://x/y.png", data_url(b"<svg/>" * 6), data_url() + "===="])
def test_an_image_that_may_not_be_sent_is_refused_where_it_is(url: str) -> None:
    refused = refusal(SEES, an_image_request(None, url))
    assert (refused.code, refused.param) == ("invalid_value", "messages[0].content[2]")
    assert refused.message.startswith("messages[0].content[2].image_url.url ")


def test_an_image_is_bounded_by_its_tokens_and_not_by_its_text() -> None:
    request = an_image_request(data_url(), data_url())
    text_alone = prompt_bound(an_image_request("", "").request.messages).tokens

    bound = prompt_bound(request.request.messages).tokens + images_bound(SEES, request)

    assert bound == text_alone + 2 * 1000


# --- defaults -------------------------------------------------------------------------------------


def test_a_default_is_sent_where_the_client_names_none() -> None:
    policy = Policy(defaults={"temperature": 0.0, "seed": 7, "stop": (".",)})

    fields = with_defaults(policy, parsed(temperature=1.5).fields)

    assert (fields["temperature"], fields["seed"], fields["stop"]) == (1.5, 7, (".",))
    assert fields["messages"] == parsed().fields["messages"]


def test_a_model_without_defaults_is_sent_what_the_client_sent() -> None:
    fields = parsed(temperature=1.5).fields
    assert with_defaults(Policy(), fields) is fields
    assert with_defaults(Policy(defaults={"temperature": 0}), fields) is fields


def test_a_default_for_tools_needs_tools() -> None:
    policy = Policy(defaults={"parallel_tool_calls": False})

    assert "parallel_tool_calls" not in with_defaults(policy, parsed().fields)
    assert with_defaults(policy, parsed(tools=[a_tool()]).fields)["parallel_tool_calls"] is False

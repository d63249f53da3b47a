"""What a model asks of requests by its configuration, and what a kind of server is asked."""

import json
from typing import Any

import pytest
from tests.support.answers import reply, stream, usage
from tests.support.builders import a_tool, data_url, image_part, message
from tests.support.customer import Customer
from tests.support.fake_upstream import FakeUpstream
from tests.support.server import TollwayServer

HELLO = [message("Hello!")]
LOOK: list[dict[str, Any]] = [message([{"type": "text", "text": "What is this?"}, image_part()])]
IMAGE_TOKENS = 2000


@pytest.fixture(scope="module")
def settings(running_upstream: FakeUpstream) -> str:
    return f"""
[limits]
requests_per_minute = 1000

[tiers.split]
prompt_rate = 1000000
completion_rate = 2000000
cached_prompt_rate = 100000
reasoning_rate = 5000000

[[upstreams]]
name = "la-plateforme"
base_url = "{running_upstream.base_url}"
dialect = "mistral"

[[upstreams]]
name = "azure"
base_url = "{running_upstream.base_url}"
api_key = "env:GPU_1_KEY"
dialect = "azure"
api_version = "2024-10-21"

[[models]]
id = "acme/strict"
tier = "split"
context_length = 100000
denied_parameters = ["logit_bias"]
defaults = {{ temperature = 0.25, reasoning_effort = "low" }}
upstreams = [{{ name = "patient", model = "strict" }}]

[[models]]
id = "acme/eyes"
tier = "split"
context_length = 100000
vision = true
image_tokens = {IMAGE_TOKENS}
max_image_bytes = 100
upstreams = [{{ name = "patient", model = "eyes" }}]

[[models]]
id = "acme/mistral"
tier = "split"
context_length = 100000
upstreams = [{{ name = "la-plateforme", model = "mistral-small" }}]

[[upstreams]]
name = "groq"
base_url = "{running_upstream.base_url}"
dialect = "groq"

[[models]]
id = "acme/groq"
tier = "split"
context_length = 100000
upstreams = [{{ name = "groq", model = "llama" }}]

[[models]]
id = "acme/hurried"
tier = "split"
context_length = 100000
supported_parameters = ["service_tier"]
upstreams = [{{ name = "groq", model = "llama" }}]

[[models]]
id = "acme/azure"
tier = "split"
context_length = 100000
upstreams = [{{ name = "azure", model = "my gpt" }}]
"""


def of(server: TollwayServer, customer: Customer, model: str) -> dict[str, Any]:
    return customer.get(f"/models/{model}").json()


# --- parameters -----------------------------------------------------------------------------------


def test_a_denied_parameter_is_refused_and_costs_nothing(
    upstream: FakeUpstream, customer: Customer
) -> None:
    before = len(upstream.exchanges)
    refused = customer.of("acme/strict").chat(messages=HELLO, logit_bias={"5": 1})

    error = refused.json()["error"]
    assert (refused.status, error["code"], error["param"]) == (
        400,
        "unsupported_parameter",
        "logit_bias",
    )
    assert "Leave it out" in error["message"]
    assert refused.header("x-ratelimit-remaining-requests") == "1000"
    assert len(upstream.exchanges) == before
    assert customer.available == 100_000


@pytest.mark.parametrize("model", ["acme/parrot", "acme/groq"])
def test_a_dearer_tier_of_service_is_refused_and_costs_nothing(
    upstream: FakeUpstream, customer: Customer, model: str
) -> None:
    customer = customer.of(model)
    before = len(upstream.exchanges)
    refused = customer.chat(messages=HELLO, service_tier="priority")

    assert (refused.status, refused.json()["error"]["param"]) == (400, "service_tier")
    assert len(upstream.exchanges) == before
    assert customer.available == 100_000
    assert customer.chat(messages=HELLO, service_tier="default").status == 200
    assert upstream.last.body["service_tier"] == "default"


def test_a_dearer_tier_of_service_is_passed_on_where_the_operator_names_the_field(
    upstream: FakeUpstream, customer: Customer
) -> None:
    hurried = customer.of("acme/hurried")
    assert hurried.chat(messages=HELLO, service_tier="priority").status == 200
    assert upstream.last.body["service_tier"] == "priority"


def test_a_default_is_sent_where_the_client_names_none(
    upstream: FakeUpstream, server: TollwayServer, customer: Customer
) -> None:
    strict = customer.of("acme/strict")
    assert strict.chat(messages=HELLO).status == 200
    by_default = upstream.last.body
    assert strict.chat(messages=HELLO, temperature=1.5, stream=True).status == 200
    by_client = upstream.last.body

    assert (by_default["temperature"], by_default["reasoning_effort"]) == (0.25, "low")
    assert (by_client["temperature"], by_client["reasoning_effort"]) == (1.5, "low")
    shown = of(server, customer, "acme/strict")
    assert shown["default_parameters"] == {"temperature": 0.25, "reasoning_effort": "low"}
    assert "logit_bias" not in shown["supported_parameters"]


# --- images ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "stream"])
def test_an_image_is_passed_on_and_held_for_as_its_tokens(
    upstream: FakeUpstream, customer: Customer, streamed: bool
) -> None:
    told = usage(1200, 2)
    upstream.answer(stream(["a", "b"], usage=told) if streamed else reply("a b", usage=told))
    answered = customer.of("acme/eyes").chat(messages=LOOK, max_tokens=10, stream=streamed)

    assert answered.status == 200
    assert upstream.last.body["messages"] == LOOK
    receipt = customer.receipt_of(answered)
    text = 256 + 16 + len('{"role":"user","content":[{"type":"text","text":"What is this?"},')
    image = len('{"type":"image_url","image_url":{"url":""}}]}')
    assert receipt["credits"]["reserved"] == text + image + IMAGE_TOKENS + 5 * 10
    assert receipt["credits"]["consumed"] == 1200 + 2 * 2


# As Vercel's AI SDK 6 sends a PNG whose media type is told as "image/*".
PNG_AS_JPEG = (
    b'{"model":"acme/eyes","messages":[{"role":"user","content":[{"type":"text","text":"x"},'
    b'{"type":"image_url","image_url":{"url":"data:image/jpeg;base64,iVBORw0KGgoAAAANSUhEUgAAAAEA'
    b'AAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="}}]}]}'
)


def test_an_image_may_say_that_it_is_another_kind_of_image(
    upstream: FakeUpstream, customer: Customer
) -> None:
    answered = customer.ask("POST", "/chat/completions", PNG_AS_JPEG)

    assert answered.status == 200
    assert upstream.last.body["messages"] == json.loads(PNG_AS_JPEG)["messages"]


def test_an_image_without_usage_counts_as_its_bound(
    upstream: FakeUpstream, customer: Customer
) -> None:
    upstream.answer(reply("x" * 8, usage=None))
    answered = customer.of("acme/eyes").chat(messages=LOOK, max_tokens=10)

    receipt = customer.receipt_of(answered)
    assert receipt["usage"]["source"] == "counted"
    assert IMAGE_TOKENS < receipt["usage"]["prompt_tokens"] < IMAGE_TOKENS + 50
    assert receipt["credits"]["consumed"] <= receipt["credits"]["reserved"]


@pytest.mark.parametrize(
    ("model", "url", "code", "says"),
    [
        ("acme/parrot", data_url(), "unsupported_parameter", "images have no price"),
        ("acme/parrot", "https://x/y.png", "unsupported_parameter", "images have no price"),
        ("acme/eyes", "https://x/y.png", "invalid_value", "data:image/png;base64,"),
        ("acme/eyes", "http://169.254.169.254/", "invalid_value", "never fetched"),
        ("acme/eyes", data_url(b"\x89PNG\r\n\x1a\n" + bytes(93)), "invalid_value", "may have 100"),
        ("acme/eyes", data_url(b"<svg/>", "svg+xml"), "invalid_value", "PNG, JPEG, WebP or GIF"),
        ("acme/eyes", data_url()[:-1], "invalid_value", "base64"),
    ],
)
def test_an_image_that_may_not_be_sent_costs_nothing_and_reaches_nobody(
    upstream: FakeUpstream, customer: Customer, model: str, url: str, code: str, says: str
) -> None:
    before = len(upstream.exchanges)
    messages = [message([image_part(url)])]
    asked = customer.of(model)
    refused = asked.chat(messages=messages)
    quote = asked.post("/chat/completions/quote", asked.chat_fields(messages=messages))

    for answered in (refused, quote):
        error = answered.json()["error"]
        assert (answered.status, error["code"]) == (400, code)
        assert error["param"] == "messages[0].content[0]"
        assert says in error["message"]
    assert len(upstream.exchanges) == before
    assert customer.available == 100_000


def test_a_model_says_whether_it_sees(server: TollwayServer, customer: Customer) -> None:
    eyes, parrot = of(server, customer, "acme/eyes"), of(server, customer, "acme/parrot")
    assert (eyes["capabilities"]["vision"], eyes["image_tokens"]) == (True, IMAGE_TOKENS)
    assert (parrot["capabilities"]["vision"], parrot["image_tokens"]) == (False, None)


# --- cached tokens and reasoning ------------------------------------------------------------------

PARTS = {
    "prompt_tokens_details": {"cached_tokens": 800},
    "completion_tokens_details": {"reasoning_tokens": 30},
}


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "stream"])
def test_cached_tokens_and_reasoning_cost_their_own_rates(
    upstream: FakeUpstream, customer: Customer, streamed: bool
) -> None:
    told = {**usage(1000, 40), **PARTS}
    upstream.answer(stream(["a"] * 40, usage=told) if streamed else reply("a", usage=told))
    asked = customer.of("acme/strict")
    options = {"stream_options": {"include_usage": True}} if streamed else {}
    answered = asked.chat(messages=[message("x" * 1000)], max_tokens=50, stream=streamed, **options)

    receipt = customer.receipt_of(answered)
    assert receipt["usage"]["cached_tokens"] == 800
    assert receipt["usage"]["reasoning_tokens"] == 30
    assert receipt["rates"] == {
        "prompt": 1_000_000,
        "completion": 2_000_000,
        "cached_prompt": 100_000,
        "reasoning": 5_000_000,
    }
    assert receipt["credits"]["consumed"] == 200 + 80 + 10 * 2 + 30 * 5
    assert receipt["credits"]["reserved"] == 256 + 16 + 1000 + 50 * 5
    assert b'"reasoning_tokens":30' in answered.body


def test_a_lie_about_the_parts_is_believed_as_far_as_the_whole(
    upstream: FakeUpstream, customer: Customer
) -> None:
    lie = {
        **usage(100, 4),
        "prompt_tokens_details": {"cached_tokens": 10**9},
        "completion_tokens_details": {"reasoning_tokens": 10**9},
    }
    upstream.answer(reply("a b c d", usage=lie))
    answered = customer.of("acme/strict").chat(messages=[message("x" * 400)], max_tokens=50)

    receipt = customer.receipt_of(answered)
    assert (receipt["usage"]["cached_tokens"], receipt["usage"]["reasoning_tokens"]) == (100, 4)
    assert receipt["credits"]["consumed"] == 10 + 4 * 5
    assert answered.json()["usage"]["prompt_tokens_details"] == {"cached_tokens": 100}


# --- dialects -------------------------------------------------------------------------------------


def test_what_its_server_does_not_understand_a_model_does_not_support(
    upstream: FakeUpstream, server: TollwayServer, customer: Customer
) -> None:
    mistral = customer.of("acme/mistral")
    answered = mistral.chat(
        messages=[message("Hi", name="ann")], seed=7, user="u", tools=[a_tool()], stream=True
    )

    assert answered.status == 200
    assert answered.header("X-Tollway-Ignored-Params") == "user"
    sent = upstream.last.body
    assert sent["random_seed"] == 7
    assert sent["messages"] == [message("Hi")]
    assert not {"seed", "user", "stream_options"} & sent.keys()
    shown = of(server, customer, "acme/mistral")
    assert "seed" in shown["supported_parameters"]
    assert "user" not in shown["supported_parameters"]


def test_azure_is_asked_at_its_deployment_with_its_own_header(
    upstream: FakeUpstream, customer: Customer
) -> None:
    upstream.answer(reply("a"))
    assert customer.of("acme/azure").chat(messages=HELLO, max_tokens=5).status == 200

    asked = upstream.last
    assert asked.path == "/v1/deployments/my%20gpt/chat/completions?api-version=2024-10-21"
    assert (asked.header("api-key"), asked.header("authorization")) == ("sk-upstream-9f2c71", None)
    assert asked.body["max_completion_tokens"] == 5

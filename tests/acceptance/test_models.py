"""The models on offer: what a buyer wants to know of each, and only those that a token may use."""

import pytest
from tests.support.customer import Customer
from tests.support.fake_upstream import FakeUpstream
from tests.support.server import TollwayServer

ALL = ["acme/free", "acme/gone", "acme/limited", "acme/parrot", "acme/plain", "acme/slow"]


def test_models_are_listed_with_their_prices_and_limits(customer: Customer) -> None:
    listed = customer.get("/models").json()

    assert listed["object"] == "list"
    models = {model["id"]: model for model in listed["data"]}
    assert sorted(models) == ALL
    plain = models["acme/plain"]
    assert plain["object"] == "model"
    assert type(plain["created"]) is int
    assert plain["owned_by"] == "acme"
    assert plain["name"]
    assert plain["context_length"] == 4096
    assert plain["max_output_tokens"] == 512
    assert plain["tier"] == "custom"
    assert plain["pricing"] == {
        "prompt": 700,
        "completion": 4000,
        "cached_prompt": 700,
        "reasoning": 4000,
    }
    assert "temperature" in plain["supported_parameters"]
    assert "tools" not in plain["supported_parameters"]
    assert plain["capabilities"]["streaming"] is True
    assert plain["capabilities"]["tools"] is False
    assert plain["confidential"] is True
    assert models["acme/parrot"]["tier"] == "parrot"
    assert models["acme/parrot"]["confidential"] is False
    assert models["acme/parrot"]["capabilities"]["tools"] is True


def test_the_start_says_that_there_are_more_models_than_the_one_it_asks(
    server: TollwayServer,
) -> None:
    assert server.stdout.startswith(f"Tollway serves acme/parrot and {len(ALL) - 1} more\n")


@pytest.mark.parametrize("path", ["acme/plain", "acme%2Fplain", "acme%2fplain"])
@pytest.mark.parametrize("base", ["/api/v1", "/v1"])
def test_a_model_is_shown_by_its_id_however_its_slash_is_written(
    customer: Customer, base: str, path: str
) -> None:
    shown = customer.over(base).get(f"/models/{path}")

    assert shown.status == 200
    listed = customer.get("/models").json()["data"]
    assert shown.json() == next(model for model in listed if model["id"] == "acme/plain")


def test_a_token_sees_only_the_models_that_it_may_use(customer: Customer) -> None:
    limited = customer.with_token(models=["acme/plain"])

    assert [model["id"] for model in limited.get("/models").json()["data"]] == ["acme/plain"]
    assert limited.get("/models/acme/plain").status == 200
    hidden, unknown = limited.get("/models/acme/parrot"), limited.get("/models/acme/none")
    assert hidden.status == unknown.status == 404
    assert hidden.json()["error"]["code"] == unknown.json()["error"]["code"] == "model_not_found"


def test_no_upstream_is_named_or_asked(upstream: FakeUpstream, customer: Customer) -> None:
    before = len(upstream.exchanges)

    shown = customer.get("/models").body.decode()

    assert "gpu-1" not in shown
    assert "parrot-upstream" not in shown
    assert str(upstream.port) not in shown
    assert len(upstream.exchanges) == before

"""An upstream that reports more than it was allowed to use is not asked again for a minute."""

from tests.support.answers import reply, usage
from tests.support.builders import message
from tests.support.customer import a_customer, eventually
from tests.support.fake_upstream import FakeUpstream
from tests.support.http import RawClient
from tests.support.server import TollwayServer


def get(server: TollwayServer, path: str) -> str:
    with RawClient("127.0.0.1", server.port, timeout_seconds=5) as client:
        client.request("GET", path, None)
        return client.read_reply().body.decode()


def test_three_shortfalls_in_a_row_set_an_upstream_aside(
    upstream: FakeUpstream, server: TollwayServer
) -> None:
    customer = a_customer(server)
    hello = [message("Hello!")]
    upstream.answer(reply("a b", usage=usage(9, 5000)), times=3)
    for _ in range(3):
        assert customer.chat(messages=hello, max_tokens=50).status == 200
    before = (customer.available, len(upstream.exchanges))

    refused = customer.chat(messages=hello, max_tokens=50)
    quote = customer.post("/chat/completions/quote", customer.chat_fields(messages=hello))
    elsewhere = customer.of("acme/slow").chat(messages=hello, max_tokens=50)

    fact = refused.json()["error"]
    assert (refused.status, fact["code"]) == (503, "unavailable")
    assert 50 < int(refused.header("Retry-After") or "") <= 60
    assert "reported more than it was allowed" in fact["message"]
    assert quote.status == 503
    assert elsewhere.status == 200
    assert len(upstream.exchanges) == before[1] + 1  # the other upstream's; it is the same server
    spent = int(elsewhere.header("X-Credits-Consumed") or 0)
    assert customer.available == before[0] - spent
    left = customer.chat(messages=hello).header("x-ratelimit-remaining-requests")
    assert left == "26"  # of thirty: three that fell short, and one elsewhere
    assert "gpu-1 is not ready" in get(server, "/readyz")
    metrics = get(server, "/metrics")
    assert 'tollway_upstream_set_aside_total{upstream="gpu-1"} 1.0' in metrics
    assert 'tollway_upstream_ready{upstream="gpu-1"} 0.0' in metrics
    assert 'tollway_credits_charged_last_minute{of="all"}' in metrics
    assert "tollway_commit_batch_size_count 0.0" not in metrics
    eventually(
        lambda: "upstream gpu-1 reported more than its cap 3 times in a row" in server.stderr, 10.0
    )

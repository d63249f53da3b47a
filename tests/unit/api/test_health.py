from tests.support.api import Api


async def test_healthz_needs_no_token_and_is_ok_while_the_loop_runs(api: Api) -> None:
    api.not_ready.append("upstream gpu-1 is not ready")
    reply = await api.get("/healthz")
    assert (reply.status, reply.json()) == (200, {"status": "ok"})


async def test_readyz_gives_its_reasons(api: Api) -> None:
    ready = await api.get("/readyz")
    api.not_ready.append("upstream gpu-1 is not ready")
    unready = await api.get("/readyz")
    assert (ready.status, ready.json()) == (200, {"status": "ready"})
    assert unready.status == 503
    assert unready.json() == {"status": "unavailable", "reasons": ["upstream gpu-1 is not ready"]}


async def test_metrics_are_text_for_prometheus(api: Api) -> None:
    await api.get("/v1/models", api.secret)
    reply = await api.get("/metrics")
    assert (reply.header("content-type") or "").startswith("text/plain")
    assert b'tollway_requests_total{kind="models",model="",status="200"} 1.0' in reply.body


async def test_probes_are_not_counted_as_requests(api: Api) -> None:
    for path in ("/healthz", "/readyz", "/metrics", "/openapi.json"):
        await api.get(path)
    assert api.metrics.requests == {}

import pytest

from tollway.gateway import route as route_module


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same upstream is asked again at once."""
    monkeypatch.setattr(route_module, "BACKOFF_SECONDS", 0.0)

"""What an upstream's refusal is for a client, where the error's shape is not as documented."""

import json
import logging
import time
from collections.abc import Iterator

import pytest

from tollway.errors import InvalidRequest, Unavailable, UpstreamFailed
from tollway.upstreams.refusals import ERROR_BYTES_READ, refusal


def error_body(**facts: object) -> bytes:
    return json.dumps({"error": facts}).encode()


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"[1]", b"{}", b"null", b'"no"', b'{"error":[]}', b'{"detail":[1]}']
)
def test_an_error_that_says_nothing_is_told_by_its_status(body: bytes) -> None:
    error = refusal("gpu-1", "parrot", 500, body)
    assert isinstance(error, UpstreamFailed)
    assert error.upstream_status == 500


def test_a_status_in_the_body_counts_only_where_the_replys_own_is_none_of_an_error() -> None:
    body = b'{"error":{"message":"no","code":429}}'
    busy, failed = refusal("gpu-1", "parrot", 200, body), refusal("gpu-1", "parrot", 502, body)
    assert isinstance(busy, Unavailable)
    assert isinstance(failed, UpstreamFailed)
    assert (busy.upstream_status, failed.upstream_status) == (429, 502)


@pytest.mark.parametrize(
    ("status", "mend"),
    [
        (401, "its key or its credit is refused"),
        (402, "its key or its credit is refused"),
        (404, "it has no model 'parrot', or its base_url is wrong (most end in /v1)"),
    ],
)
def test_what_the_operator_must_mend_is_logged_as_that_once_a_minute(
    status: int, mend: str, caplog: pytest.LogCaptureFixture
) -> None:
    upstream = f"refuses-{status}"

    for _ in range(3):
        assert isinstance(refusal(upstream, "parrot", status, b""), Unavailable)

    (told,) = caplog.records
    assert told.levelno == logging.ERROR
    assert told.getMessage() == f"upstream {upstream} answered {status}: {mend}"


@pytest.mark.parametrize("code", [0, 200, 399, 600, 1302, True])
def test_a_servers_own_number_for_an_error_is_no_status(code: int) -> None:
    error = refusal("gpu-1", "parrot", 200, error_body(message="no", code=code))
    assert isinstance(error, UpstreamFailed)
    assert error.upstream_status == 200


def test_a_400_in_the_body_of_a_200_blames_the_request() -> None:
    assert isinstance(
        refusal("gpu-1", "parrot", 200, error_body(message="no", code=400)), InvalidRequest
    )


def test_a_request_is_not_called_unsupported_where_no_field_is_named() -> None:
    error = refusal("gpu-1", "parrot", 400, error_body(message="This image is not supported."))
    assert (error.code, error.param) == ("invalid_value", None)


def test_an_account_that_is_flagged_for_its_bill_is_the_operators_trouble() -> None:
    error = refusal(
        "gpu-1", "parrot", 403, error_body(message="flagged", code="billing_not_active")
    )
    assert isinstance(error, Unavailable)


def test_no_more_of_an_error_is_read_than_an_error_needs() -> None:
    said = "too many tokens" + "x" * ERROR_BYTES_READ
    assert refusal("gpu-1", "parrot", 400, error_body(message=said)).code == "invalid_value"


def test_a_failure_is_in_the_log_for_the_operator_once_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for _ in range(3):
        refusal("fails-with-500", "parrot", 500, b"")
    (told,) = caplog.records
    assert (told.levelno, told.getMessage()) == (
        logging.ERROR,
        "upstream fails-with-500 answered 500",
    )


# --- when to come back ----------------------------------------------------------------------------


@pytest.fixture
def in_new_york(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patched:
        patched.setenv("TZ", "America/New_York")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("in_new_york")
@pytest.mark.parametrize("zone", ["GMT", "-0000"])
def test_a_date_is_waited_for_to_its_end_wherever_the_gateway_is(zone: str) -> None:
    retry_after = ((b"retry-after", f"Wed, 21 Oct 2015 07:28:00 {zone}".encode()),)
    error = refusal("gpu-1", "parrot", 429, b"", retry_after, now=lambda: 1445412440.5)
    assert isinstance(error, Unavailable)
    assert error.retry_after_seconds == error.upstream_rest_seconds == 40

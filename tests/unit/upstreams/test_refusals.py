"""What an upstream's refusal is for a client, where the error's shape is not as documented."""

import logging

import pytest

from tollway.errors import Unavailable, UpstreamFailed
from tollway.upstreams.refusals import refusal


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

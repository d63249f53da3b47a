"""What a request's head says about its body, and whether that can be taken."""

from collections.abc import Mapping, Sequence

from tollway.errors import InvalidRequest, PayloadTooLarge, RequestError, UnsupportedMediaType

BODY_BYTES_MAX = 4 * 1024 * 1024


def refusal_of_head(headers: Mapping[bytes, bytes]) -> RequestError | None:
    """`headers` by their names in lower case; Content-Length has been seen to be a number."""
    length = headers.get(b"content-length")
    if length is not None and int(length) > BODY_BYTES_MAX:
        return too_large()
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        return UnsupportedMediaType("The body must not be compressed. Leave out Content-Encoding.")
    media_type = headers.get(b"content-type", b"application/json").partition(b";")[0]
    media_type = media_type.strip().lower()
    if media_type != b"application/json":
        return UnsupportedMediaType(
            f"The body must be JSON and the Content-Type is {media_type[:100].decode('latin-1')}. "
            "Send Content-Type: application/json."
        )
    return None


_ONCE = (
    b"authorization",
    b"content-type",
    b"idempotency-key",
    b"x-credits-max",
    b"x-session-id",
    b"x-tollway-timeout-ms",
)


def refusal_of_repeated(headers: Sequence[tuple[bytes, bytes]]) -> RequestError | None:
    """Of two ceilings or two keys nobody knows which is meant."""
    for name in _ONCE:
        if len({value for other, value in headers if other == name}) > 1:
            return InvalidRequest(
                f"The header {name.decode()} is there more than once, and says different things. "
                "Send it once."
            )
    return None


def too_large() -> PayloadTooLarge:
    return PayloadTooLarge(f"The body is larger than {BODY_BYTES_MAX} bytes. Send less.")

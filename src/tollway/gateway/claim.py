"""Has the request been made before? With an `Idempotency-Key`, trying again does not pay again."""

import hashlib

import msgspec
from msgspec import Struct

from tollway.errors import IdempotencyConflict, InvalidRequest
from tollway.gateway.types import Call, Caller, StoredReply
from tollway.ledger.base import IdempotencyKeys

KEY_CHARACTERS_MAX = 255

_encode = msgspec.json.Encoder().encode


class Replay(Struct, frozen=True):
    """The request that had the key before, and its reply."""

    request_id: str
    reply: StoredReply


async def claim_key(call: Call, caller: Caller, keys: IdempotencyKeys) -> Replay | None:
    """None once the key is claimed, on disk: the request may run.

    Raises `IdempotencyConflict`, `IdempotencyMismatch` and, for no usable key, `InvalidRequest`.
    """
    assert call.idempotency_key is not None
    key = _key(call.idempotency_key)
    digest = hashlib.sha256(call.body).digest()
    earlier = await keys.claim(caller.account.id, key, digest, call.request_id)
    if earlier is None:
        return None
    if earlier.reply is None:
        raise IdempotencyConflict(
            "The first request with this Idempotency-Key has completed; its reply was not kept. "
            f"GET /receipts/{earlier.request_id} tells what it used and cost.",
            code="idempotency_completed",
            retry=False,
        )
    return Replay(earlier.request_id, msgspec.json.decode(earlier.reply, type=StoredReply))


def stored_reply(credits_consumed: int, credits_remaining: int, body: bytes) -> bytes:
    return _encode(StoredReply(credits_consumed, credits_remaining, body.decode()))


def _key(header: bytes) -> str:
    key = header.decode("latin-1")
    if not (1 <= len(key) <= KEY_CHARACTERS_MAX and key.isascii() and key.isprintable()):
        raise InvalidRequest(
            f"The header Idempotency-Key must have 1 to {KEY_CHARACTERS_MAX} printable ASCII "
            f"characters; this one has {len(key)}."
        )
    return key

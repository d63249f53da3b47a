"""What a request used and cost: its receipt, which can be signed, and checked without us.

`tollway receipt verify` is `faults_of` on a file: the signature fits the operator's public key, and
the charge is what the usage costs at the rates.
"""

from typing import TYPE_CHECKING, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from tollway.api.operation import Answer, Asked
from tollway.catalogue import Price
from tollway.clock import iso
from tollway.errors import InvalidRequest, NotFound, how_many
from tollway.ledger.base import Attempt, Receipt, Status, UsageSource
from tollway.ledger.signing import ALGORITHM, Document, SigningKey, key_id, verify_signature
from tollway.pricing import charge

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


class ReceiptUsage(Struct, frozen=True):
    """`source`: upstream (it reported them), counted (Tollway did), checkpoint (a crash left only
    that). Cached tokens are among the prompt's, reasoning tokens among the completion's."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    source: UsageSource
    cached_tokens: int
    reasoning_tokens: int


class ReceiptRates(Struct, frozen=True):
    """Whole credits per million tokens, as they were when the request began."""

    prompt: int
    completion: int
    cached_prompt: int
    reasoning: int


class ReceiptCredits(Struct, frozen=True):
    reserved: int
    consumed: int
    shortfall: int
    remaining: int


class ReceiptTimings(Struct, frozen=True, rename="camel"):
    first_token_ms: int | None
    total_ms: int


class ReceiptEntry(Struct, frozen=True):
    """The charge in the account's ledger: its number there, and its hash in hexadecimal, which
    links it to the entry before."""

    seq: int
    hash: str


class ReceiptSignature(Struct, frozen=True, rename="camel"):
    """Ed25519 over the receipt without its `signature`, as canonical JSON: UTF-8, keys sorted, no
    spaces. `value` is base64."""

    algorithm: Literal["Ed25519"]
    key_id: str
    value: str


class ReceiptObject(Struct, frozen=True, rename="camel"):
    """All that is needed to recompute a charge and to find it in the ledger. `ledger` is null where
    nothing was charged; `signature` is there where it was asked for."""

    id: str
    object: Literal["receipt"]
    account_id: str
    token_id: str
    model: str
    upstream: str | None
    upstream_id: str | None
    client_request_id: str | None
    status: Status
    created_at: str
    finished_at: str
    usage: ReceiptUsage
    price_id: str
    rates: ReceiptRates
    credits: ReceiptCredits
    ledger: ReceiptEntry | None
    timings: ReceiptTimings
    attempts: tuple[Attempt, ...]
    signature: ReceiptSignature | UnsetType = UNSET


class ReceiptKey(Struct, frozen=True, rename="camel"):
    """The public key of the receipts' signatures, in both forms that programs read."""

    id: str
    object: Literal["receipt_key"]
    algorithm: Literal["Ed25519"]
    jwk: dict[str, str]
    pem: str


async def show_receipt(asked: Asked) -> Answer:
    wants_signature = _wants_signature(asked)
    await asked.take_place()
    request_id = asked.path["request_id"]
    receipt = await asked.parts.ledger.receipt(request_id)
    if receipt is None or receipt.account_id != asked.caller.account.id:
        raise NotFound(
            f"There is no receipt {request_id!r:.100}. A request has one, under its X-Request-Id, "
            "from its settlement on; one that was refused has none."
        )
    if wants_signature:
        return Answer(signed_receipt(receipt, asked.parts.signing_key))
    return Answer(receipt_object(receipt))


def receipt_key(key: SigningKey) -> bytes:
    return msgspec.json.encode(
        ReceiptKey(key.id, "receipt_key", ALGORITHM, key.public_jwk(), key.public_pem())
    )


def signed_receipt(receipt: Receipt, key: SigningKey) -> Document:
    return key.sign(msgspec.to_builtins(receipt_object(receipt)))


def receipt_object(receipt: Receipt) -> ReceiptObject:
    return ReceiptObject(
        id=receipt.request_id,
        object="receipt",
        account_id=receipt.account_id,
        token_id=receipt.token_id,
        model=receipt.model,
        upstream=receipt.upstream,
        upstream_id=receipt.upstream_id,
        client_request_id=receipt.client_request_id,
        status=receipt.status,
        created_at=iso(receipt.created_at),
        finished_at=iso(receipt.created_at + receipt.total_ms / 1000),
        usage=ReceiptUsage(
            receipt.input_tokens,
            receipt.output_tokens,
            receipt.input_tokens + receipt.output_tokens,
            receipt.source,
            receipt.cached_tokens,
            receipt.reasoning_tokens,
        ),
        price_id=receipt.price_id,
        rates=ReceiptRates(
            receipt.input_credits_per_million,
            receipt.output_credits_per_million,
            receipt.cached_credits_per_million,
            receipt.reasoning_credits_per_million,
        ),
        credits=ReceiptCredits(
            receipt.reserved, receipt.charged, receipt.shortfall, receipt.remaining
        ),
        ledger=None
        if receipt.entry is None
        else ReceiptEntry(receipt.entry.seq, receipt.entry.hash.hex()),
        timings=ReceiptTimings(receipt.first_token_ms, receipt.total_ms),
        attempts=receipt.attempts,
    )


def _wants_signature(asked: Asked) -> bool:
    values = asked.query.getlist("signed")
    if not values or values == ["false"]:
        return False
    if values == ["true"]:
        return True
    raise InvalidRequest("signed must be true or false, once.", param="signed")


# --- checking one ---------------------------------------------------------------------------------


def faults_of(
    document: Document, public_key: "Ed25519PublicKey", whose: str = "the key given"
) -> list[str]:
    """What is wrong with a signed receipt, as sentences; none for one that is right. Needs neither
    a server nor a ledger. `whose` is what the key is called."""
    return [*_faults_of_signature(document, public_key, whose), *_faults_of_sums(document)]


def _faults_of_signature(
    document: Document, public_key: "Ed25519PublicKey", whose: str
) -> list[str]:
    if "signature" not in document:
        return ["It has no signature. Ask for the receipt with ?signed=true."]
    if verify_signature(document, public_key):
        return []
    try:
        signed_by = msgspec.convert(document["signature"], ReceiptSignature).key_id
    except msgspec.ValidationError as error:
        return [f"Its signature cannot be read: {error}."]
    known = key_id(public_key)
    if signed_by != known:
        return [
            f"It says that the key {signed_by} signed it, and {whose} is {known}. Give the "
            "--data-dir of the server that signed it, or its public key with --key."
        ]
    return ["Its signature does not fit: something in it was changed after it was signed."]


def _faults_of_sums(document: Document) -> list[str]:
    try:
        receipt = msgspec.convert(document, ReceiptObject)
    except msgspec.ValidationError as error:
        return [f"It is not a receipt: {error}."]
    usage, rates, credits = receipt.usage, receipt.rates, receipt.credits
    price = Price(
        receipt.price_id, rates.prompt, rates.completion, rates.cached_prompt, rates.reasoning
    )
    cost = charge(
        price,
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.cached_tokens,
        usage.reasoning_tokens,
    )
    faults: list[str] = []
    if usage.prompt_tokens + usage.completion_tokens != usage.total_tokens:
        faults.append(f"Its tokens do not add up to {usage.total_tokens}.")
    if not (
        0 <= usage.cached_tokens <= usage.prompt_tokens
        and 0 <= usage.reasoning_tokens <= usage.completion_tokens
    ):
        faults.append("Cached tokens are part of its prompt, and reasoning of its completion.")
    if credits.consumed + credits.shortfall != cost:
        faults.append(
            f"Its usage costs {how_many(cost, 'credit')} at its rates, and it says "
            f"{credits.consumed} consumed and {credits.shortfall} short."
        )
    if credits.consumed > credits.reserved:
        faults.append(
            f"It says {how_many(credits.consumed, 'credit')} consumed, more than the "
            f"{credits.reserved} reserved."
        )
    if (receipt.ledger is None) != (credits.consumed == 0):
        faults.append("A charge has one entry in the ledger, and what cost nothing has none.")
    return faults

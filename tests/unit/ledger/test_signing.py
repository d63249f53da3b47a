import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from tollway.errors import StartError
from tollway.ledger.signing import SigningKey, canonical, read_public_key, verify_signature

RECEIPT = {
    "id": "req_1",
    "model": "acme/modèle",
    "credits": {"consumed": 3, "shortfall": 0},
    "attempts": [{"upstream": "gpu-1", "status": 200}],
    "finishedAt": None,
}


def test_a_signed_document_says_who_signed_it_and_how(tmp_path: Path) -> None:
    key = SigningKey.load(tmp_path)

    signed = key.sign(RECEIPT)

    assert {name: signed[name] for name in RECEIPT} == RECEIPT
    assert signed["signature"]["algorithm"] == "Ed25519"
    assert signed["signature"]["keyId"] == key.id


@pytest.mark.parametrize("form", ["pem", "jwk"])
def test_a_signature_can_be_checked_with_the_public_key_alone(tmp_path: Path, form: str) -> None:
    key = SigningKey.load(tmp_path)
    exported = {"pem": key.public_pem().encode(), "jwk": msgspec.json.encode(key.public_jwk())}
    signed = key.sign(RECEIPT)

    assert verify_signature(signed, read_public_key(exported[form]))


def test_layout_and_order_do_not_matter(tmp_path: Path) -> None:
    key = SigningKey.load(tmp_path)
    signed = key.sign(RECEIPT)
    turned = dict(reversed(msgspec.json.decode(msgspec.json.encode(signed)).items()))

    assert verify_signature(turned, read_public_key(key.public_pem().encode()))


def test_a_document_may_be_signed_again(tmp_path: Path) -> None:
    key = SigningKey.load(tmp_path)

    assert key.sign(key.sign(RECEIPT)) == key.sign(RECEIPT)


@pytest.mark.parametrize(
    "change",
    [
        {"id": "req_2"},
        {"credits": {"consumed": 4, "shortfall": 0}},
        {"added": 1},
        {"finishedAt": 0},
        {"signature": None},
        {"signature": {}},
        {"signature": {"algorithm": "Ed25519", "value": "not base64!"}},
        {"signature": {"algorithm": "Ed25519", "value": ""}},
        {"signature": {"algorithm": "none", "value": ""}},
        {"signature": {"algorithm": "Ed25519", "value": 7}},
    ],
)
def test_a_changed_document_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    key = SigningKey.load(tmp_path)
    changed = {**key.sign(RECEIPT), **change}

    assert not verify_signature(changed, read_public_key(key.public_pem().encode()))


def test_another_key_does_not_fit(tmp_path: Path) -> None:
    other_dir = tmp_path / "other"
    other_dir.mkdir()
    signed = SigningKey.load(tmp_path).sign(RECEIPT)
    other = SigningKey.load(other_dir)

    assert not verify_signature(signed, read_public_key(other.public_pem().encode()))


def test_the_key_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    first = SigningKey.load(tmp_path)
    second = SigningKey.load(tmp_path)

    assert first.id == second.id
    assert [path.name for path in tmp_path.iterdir()] == ["signing.key"]
    assert (tmp_path / "signing.key").stat().st_mode & 0o777 == 0o600


def test_a_key_that_was_half_made_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "signing.new").write_bytes(b"-----BEGIN")

    assert SigningKey.load(tmp_path).sign(RECEIPT)


_WITHOUT_PASSPHRASE = serialization.NoEncryption()


def a_pem(
    key: PrivateKeyTypes,
    encryption: serialization.KeySerializationEncryption = _WITHOUT_PASSPHRASE,
) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )


@pytest.mark.parametrize(
    ("pem", "what"),
    [
        (b"", "is damaged: it is no private key in PEM"),
        (b"-----BEGIN", "is damaged: it is no private key in PEM"),
        (
            b"-----BEGIN PRIVATE KEY-----\nQUJD\n-----END PRIVATE KEY-----\n",
            "is damaged: it is no private key in PEM",
        ),
        (a_pem(X25519PrivateKey.generate()), "is of another kind than Ed25519"),
        (
            a_pem(Ed25519PrivateKey.generate(), serialization.BestAvailableEncryption(b"secret")),
            "has a passphrase, and must have none",
        ),
    ],
    ids=["empty", "cut", "garbage", "another kind", "passphrase"],
)
def test_a_key_that_is_none_is_not_replaced_and_is_told_what_to_do_about(
    tmp_path: Path, pem: bytes, what: str
) -> None:
    path = tmp_path / "signing.key"
    path.write_bytes(pem)

    with pytest.raises(StartError) as refused:
        SigningKey.load(tmp_path)

    assert str(refused.value) == (
        f"The signing key {path} {what}. Put back the one of your backup. Without it, move this "
        "one away: the next start makes another, and receipts that were signed before are checked "
        "with the public key of before."
    )
    assert path.read_bytes() == pem


def test_the_secret_is_not_in_its_repr(tmp_path: Path) -> None:
    key = SigningKey.load(tmp_path)

    assert repr(key) == f"SigningKey({key.id})"


@pytest.mark.parametrize("text", [b"", b"{}", b'{"crv": "X25519", "x": ""}', b"-----BEGIN"])
def test_what_is_no_public_key_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        read_public_key(text)


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), _values))
def test_canonical_bytes_survive_a_journey_as_json(document: dict[str, Any]) -> None:
    assert canonical(json.loads(json.dumps(document))) == canonical(document)

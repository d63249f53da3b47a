"""Signed receipts: an Ed25519 key in the data directory, and documents that can be checked without
the server.

What is signed is the document without its `signature`, as canonical JSON: UTF-8, keys sorted, no
spaces. So it can be printed, stored and sent in any layout.

Cryptography is imported by what uses it: a server that never signs is 8 MB smaller for it.
"""

import base64
import contextlib
import hashlib
import json
import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from tollway.errors import StartError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

ALGORITHM: Literal["Ed25519"] = "Ed25519"
KEY_FILE = "signing.key"

Document = dict[str, Any]
"""A JSON object. Any: what its values are is the receipt's affair."""


class _Signature(msgspec.Struct):
    algorithm: Literal["Ed25519"]
    value: str


class _Jwk(msgspec.Struct):
    crv: Literal["Ed25519"]
    x: str


class _Published(msgspec.Struct):
    """What the route of the public key shows."""

    jwk: _Jwk


class SigningKey:
    """`pem` has been seen to be an Ed25519 key: use `load` or `of_pem`."""

    def __init__(self, pem: bytes) -> None:
        self._pem = pem

    @cached_property
    def _private_key(self) -> "Ed25519PrivateKey":
        return _opened(self._pem)

    @cached_property
    def id(self) -> str:
        return key_id(self._private_key.public_key())

    @classmethod
    def load(cls, data_dir: Path) -> "SigningKey":
        """Makes the key at the first use. Raises `StartError` where the file is not such a key."""
        path = data_dir / KEY_FILE
        try:
            if not path.exists():
                _make(path)
            pem = path.read_bytes()
        except OSError as error:
            raise StartError(f"The signing key {path} cannot be read: {error}.") from error
        return cls.of_pem(pem, str(path))

    @classmethod
    def existing(cls, data_dir: Path) -> "SigningKey | None":
        """As `load`, but makes none."""
        return cls.load(data_dir) if (data_dir / KEY_FILE).exists() else None

    @classmethod
    def of_pem(cls, pem: bytes, where: str) -> "SigningKey":
        """Raises `StartError` where it is not such a key; `where` is what that calls it."""
        if not _is_as_we_write_it(pem):
            try:
                _opened(pem)
            except ValueError as error:
                raise StartError(
                    f"The signing key {where} {error}. Put back the one of your backup. Without "
                    "it, move this one away: the next start makes another, and receipts that were "
                    "signed before are checked with the public key of before."
                ) from None
        return cls(pem)

    def sign(self, document: Document) -> Document:
        """The document with its `signature`; one that it had is replaced."""
        value = self._private_key.sign(canonical(document))
        signature = {
            "algorithm": ALGORITHM,
            "keyId": self.id,
            "value": base64.b64encode(value).decode(),
        }
        return {**document, "signature": signature}

    def private_pem(self) -> str:
        """For where it is kept, and nowhere else."""
        return _pem(self._private_key).decode()

    def public_pem(self) -> str:
        from cryptography.hazmat.primitives import serialization

        public = self._private_key.public_key()
        return public.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        ).decode()

    def public_jwk(self) -> dict[str, str]:
        """RFC 8037."""
        x = base64.urlsafe_b64encode(_raw(self._private_key.public_key())).rstrip(b"=").decode()
        return {
            "kty": "OKP",
            "crv": "Ed25519",
            "alg": "EdDSA",
            "use": "sig",
            "kid": self.id,
            "x": x,
        }

    def __repr__(self) -> str:
        return f"SigningKey({self.id})"


def verify_signature(document: Document, public_key: "Ed25519PublicKey") -> bool:
    """Whether the document is as it was when the owner of the key signed it."""
    from cryptography.exceptions import InvalidSignature

    try:
        signature = msgspec.convert(document.get("signature"), _Signature)
    except msgspec.ValidationError:
        return False
    try:
        public_key.verify(base64.b64decode(signature.value, validate=True), canonical(document))
    except (InvalidSignature, ValueError):
        return False
    return True


def read_public_key(pem_or_jwk: bytes) -> "Ed25519PublicKey":
    """Or as `GET /receipts/public-key` shows it. Raises `ValueError` for anything but an Ed25519
    public key."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if pem_or_jwk.lstrip().startswith(b"{"):
        is_published = "jwk" in msgspec.json.decode(pem_or_jwk, type=dict[str, object])
        x = (
            msgspec.json.decode(pem_or_jwk, type=_Published).jwk.x
            if is_published
            else msgspec.json.decode(pem_or_jwk, type=_Jwk).x
        )
        return Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(x + "=" * (-len(x) % 4)))
    key = serialization.load_pem_public_key(pem_or_jwk)
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError("this is a public key of another kind than Ed25519")
    return key


def key_id(public_key: "Ed25519PublicKey") -> str:
    return hashlib.sha256(_raw(public_key)).hexdigest()[:16]


def canonical(document: Document) -> bytes:
    """The bytes that are signed. Raises `ValueError` for what JSON cannot say."""
    bare = {name: value for name, value in document.items() if name != "signature"}
    text = json.dumps(
        bare, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode()


def _raw(public_key: "Ed25519PublicKey") -> bytes:
    from cryptography.hazmat.primitives import serialization

    return public_key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def new_key() -> bytes:
    """In PEM, for `SigningKey.of_pem`."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return _pem(Ed25519PrivateKey.generate())


# RFC 8410: what stands before the 32 bytes of an Ed25519 key in PKCS #8.
_DER_BEFORE_KEY = bytes.fromhex("302e020100300506032b657004220420")


def _is_as_we_write_it(pem: bytes) -> bool:
    lines = pem.split()
    if lines[:3] != [b"-----BEGIN", b"PRIVATE", b"KEY-----"]:
        return False
    if lines[-3:] != [b"-----END", b"PRIVATE", b"KEY-----"]:
        return False
    try:
        der = base64.b64decode(b"".join(lines[3:-3]), validate=True)
    except ValueError:
        return False
    return len(der) == len(_DER_BEFORE_KEY) + 32 and der.startswith(_DER_BEFORE_KEY)


def _opened(pem: bytes) -> "Ed25519PrivateKey":
    """Raises `ValueError`, which says what else it is, where it is no such key."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except TypeError:
        raise ValueError("has a passphrase, and must have none") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("is damaged: it is no private key in PEM") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError("is of another kind than Ed25519")
    return key


def _pem(key: "Ed25519PrivateKey") -> bytes:
    from cryptography.hazmat.primitives import serialization

    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _make(path: Path) -> None:
    """Whole or not at all: a torn key would end every signature that follows."""
    pem = new_key()
    unfinished = path.with_suffix(".new")
    with contextlib.suppress(FileNotFoundError):
        unfinished.unlink()
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(descriptor)
    unfinished.rename(path)

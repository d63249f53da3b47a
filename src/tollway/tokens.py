"""API tokens: issue, find, change, revoke.

A secret is `tw_`, 43 base62 characters (256 random bits) and 6 of a CRC32, which lets a typo or a
truncated paste be refused without a look-up, and lets scanners for leaked secrets be sure. Only its
SHA-256 is kept: 256 random bits need no salt and no slow hash. A malformed, an unknown and a
revoked token get one and the same answer.

Replicas change one token at the same time, and a command beside them does. So a change is made only
to a row that is still as it was read, else it is read again; what is known here is what was read
last. A revocation is never undone: it changes nothing else, and nothing else changes what it does.
"""

import asyncio
import hashlib
import json
import re
import secrets
import zlib
from collections.abc import Callable, Iterable
from typing import Literal

import msgspec

from tollway.clock import Clock, new_id
from tollway.database.base import Database, Row, Statement
from tollway.errors import AuthenticationFailed, InvalidRequest, NotFound, Refused

SCOPES = ("llm-all", "account")
NAME_CHARACTERS_MAX = 100

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_SHAPE = re.compile(r"tw_[0-9A-Za-z]{49}")


class Token(msgspec.Struct, frozen=True):
    """`models` None: all of them. `spend_cap` is in credits over the token's whole life. `strict`:
    unknown fields are 400."""

    id: str
    account_id: str
    name: str
    scopes: frozenset[str]
    models: frozenset[str] | None
    requests_per_minute: int | None
    spend_cap: int | None
    strict: bool
    created_at: float
    expires_at: float | None
    revoked_at: float | None

    def is_live(self, now: float) -> bool:
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


class Tokens:
    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._by_id: dict[str, Token] = {}
        # The dict's own method: it is called in every request.
        self.get: Callable[[str], Token | None] = self._by_id.get
        self._id_by_digest: dict[bytes, str] = {}
        self._ids_by_account: dict[str, list[str]] = {}
        # Refused here, while nobody knows yet whether the database says so.
        self._revoking: set[str] = set()
        # One after the other: what was read later is what is known.
        self._reading = asyncio.Lock()

    async def load(self) -> None:
        for row in await self._database.fetch(_TOKENS + " ORDER BY id"):
            self._remember(*_token(row))

    async def read_again(self, token_ids: Iterable[str]) -> None:
        """What another process has changed. What has not changed stays the very same object."""
        for token_id in token_ids:
            async with self._reading:
                for row in await self._database.fetch(_TOKENS + " WHERE id = ?", (token_id,)):
                    self._learn(*_token(row))

    def _learn(self, digest: bytes, token: Token) -> None:
        before = self._by_id.get(token.id)
        if token.revoked_at is not None:
            self._revoking.discard(token.id)
        elif before is not None:  # it may have been revoked since it was read
            token = msgspec.structs.replace(token, revoked_at=before.revoked_at)
        if token != before:
            self._remember(digest, token)

    def authenticate(self, secret: str) -> Token:
        """Raises `AuthenticationFailed` (invalid_api_key, token_expired)."""
        digest = _digest(secret)
        token_id = None if digest is None else self._id_by_digest.get(digest)
        token = None if token_id is None else self._by_id[token_id]
        if token is None or token.revoked_at is not None:
            raise AuthenticationFailed(
                "This token is not known here. Send `Authorization: Bearer tw_...` with a token "
                "that `tollway token issue` or POST /auth/pat gave you."
            )
        if token.expires_at is not None and self._clock.now() >= token.expires_at:
            raise AuthenticationFailed(
                "This token has expired. Get a new one.", code="token_expired"
            )
        return token

    def list(self, account_id: str | None = None) -> list[Token]:
        """An account's, or all there are; the oldest first."""
        if account_id is None:
            return list(self._by_id.values())
        return [self._by_id[id_] for id_ in self._ids_by_account.get(account_id, ())]

    async def issue(
        self,
        account_id: str,
        *,
        name: str,
        scopes: Iterable[str],
        models: Iterable[str] | None = None,
        expires_in_seconds: int | None = None,
        requests_per_minute: int | None = None,
        spend_cap: int | None = None,
        strict: bool = False,
        audit: Callable[[Token], Statement] | None = None,
    ) -> tuple[Token, str]:
        """The token and its secret, which is not kept and cannot be shown again. What `audit` makes
        is written with it. Raises `InvalidRequest`."""
        granted = frozenset(scopes)
        if not granted or not granted <= frozenset(SCOPES):
            raise InvalidRequest(
                f"A token's scopes are one or more of {', '.join(SCOPES)}.", param="scopes"
            )
        _require_name(name)
        now = self._clock.now()
        secret = new_secret()
        token = Token(
            id=new_id("tok", now),
            account_id=account_id,
            name=name,
            scopes=granted,
            models=None if models is None else frozenset(models),
            requests_per_minute=requests_per_minute,
            spend_cap=spend_cap,
            strict=strict,
            created_at=now,
            expires_at=None if expires_in_seconds is None else now + expires_in_seconds,
            revoked_at=None,
        )
        digest = _digest(secret)
        assert digest is not None
        await self._database.execute(
            *(() if audit is None else (audit(token),)),
            (_INSERT, _row(digest, token)),
        )
        if token.id not in self._by_id:  # else it was heard of, and may have been changed since
            self._remember(digest, token)
        return token, secret

    async def set_limits(
        self,
        token_id: str,
        audit: Callable[[Token, Token, Statement], Statement],
        *,
        name: str | None = None,
        models: Iterable[str] | Literal["all"] | None = None,
        requests_per_minute: int | Literal["default"] | None = None,
        expires_in_seconds: int | Literal["never"] | None = None,
        spend_cap: int | None = None,
        strict: bool | None = None,
    ) -> Token:
        """None leaves a limit as it is; a word takes it away. In force for the next request; those
        that run end as they were admitted. What `audit` makes of the token before and after is
        written with it, where there is a row that the given query finds. Raises `NotFound`,
        `InvalidRequest` and `Refused`."""
        token = self._by_id.get(token_id)
        if token is None:
            raise self._not_found(token_id, None)
        if spend_cap is not None and token.spend_cap is None:
            raise Refused(
                f"The token {token_id} was issued without a spend cap, so what it spends is not "
                "counted. Issue another one with --spend-cap, and revoke this one."
            )
        changes: dict[str, object] = {}
        if name is not None:
            _require_name(name)
            changes["name"] = name
        if models is not None:
            changes["models"] = None if models == "all" else json.dumps(sorted(set(models)))
        if requests_per_minute is not None:
            changes["requests_per_minute"] = _or_none(requests_per_minute)
        if expires_in_seconds is not None:
            seconds, now = _or_none(expires_in_seconds), self._clock.now()
            changes["expires_at"] = None if seconds is None else int((now + seconds) * 1000)
        if spend_cap is not None:
            changes["spend_cap"] = spend_cap
        if strict is not None:
            changes["strict"] = int(strict)
        while not await self._change(token_id, changes, audit):
            pass  # somebody else has changed it meanwhile: that stays
        await self.read_again([token_id])
        return self._by_id[token_id]

    async def _change(
        self,
        token_id: str,
        changes: dict[str, object],
        audit: Callable[[Token, Token, Statement], Statement],
    ) -> bool:
        """Whether the token was, until it was changed, as it had been read. Raises `Refused`."""
        (row,) = await self._database.fetch(_TOKENS + " WHERE id = ?", (token_id,))
        before = dict(zip(_COLUMNS, row, strict=True))
        if before["revoked_at"] is not None or self._by_id[token_id].revoked_at is not None:
            raise Refused(f"The token {token_id} was revoked, for good. Issue another one.")
        after = before | changes
        was = (token_id, *(_comparable(limit, before[limit]) for limit in _LIMITS))
        unchanged = (_FIND + _UNCHANGED, was)
        changed = await self._database.execute(
            # Until the end of the transaction nobody else changes it.
            ("UPDATE tokens SET created_at = created_at WHERE id = ?", (token_id,)),
            audit(_token(row)[1], _token(tuple(after.values()))[1], unchanged),
            (_UPDATE + _UNCHANGED, (*(after[limit] for limit in _LIMITS), *was)),
        )
        return changed > 0

    async def revoke(
        self, token_id: str, *audit: Statement, account_id: str | None = None
    ) -> Token:
        """Refused from the next request on, at once. `audit` is written with it. Raises `NotFound`,
        also for another account's token."""
        token = self._by_id.get(token_id)
        if token is None or (account_id is not None and token.account_id != account_id):
            raise self._not_found(token_id, account_id)
        if token.revoked_at is not None:
            return token
        now = self._clock.now()
        self._by_id[token_id] = msgspec.structs.replace(token, revoked_at=now)
        self._revoking.add(token_id)
        try:
            await self._database.execute(
                *audit,
                ("UPDATE tokens SET revoked_at = ? WHERE id = ?", (int(now * 1000), token_id)),
            )
        except BaseException:
            # Not on disk, so a restart would bring it back: whoever asked must ask again. Where the
            # answer alone was lost, it may have been read again as revoked.
            if token_id in self._revoking:
                known = self._by_id[token_id]
                self._by_id[token_id] = msgspec.structs.replace(known, revoked_at=None)
            raise
        finally:
            self._revoking.discard(token_id)
        return self._by_id[token_id]

    def _not_found(self, token_id: str, account_id: str | None) -> NotFound:
        listed = "`tollway token list`" if account_id is None else "GET /auth/pat"
        if not token_id.startswith("tw_"):
            return NotFound(f"There is no token {token_id!r:.100}. {listed} shows their ids.")
        # Whoever has found a secret that leaked has nothing else. It is not repeated.
        digest = _digest(token_id)
        found = None if digest is None else self._id_by_digest.get(digest)
        token = None if found is None else self._by_id[found]
        if token is None or (account_id is not None and token.account_id != account_id):
            return NotFound(f"This looks like a secret, and no token has it. {listed} shows ids.")
        return NotFound(f"This is a token's secret, and its id is meant: {token.id}.")

    def _remember(self, digest: bytes, token: Token) -> None:
        if token.id not in self._by_id:
            self._ids_by_account.setdefault(token.account_id, []).append(token.id)
        self._by_id[token.id] = token
        self._id_by_digest[digest] = token.id


_COLUMNS = (
    *("digest", "id", "account_id", "name", "scopes", "models", "requests_per_minute"),
    *("spend_cap", "strict", "created_at", "expires_at", "revoked_at"),
)
_LIMITS = ("name", "models", "requests_per_minute", "spend_cap", "strict", "expires_at")
_TOKENS = (
    "SELECT digest, id, account_id, name, scopes, models, requests_per_minute, spend_cap, strict,"
    " created_at, expires_at, revoked_at FROM tokens"
)
_INSERT = (
    "INSERT INTO tokens (digest, id, account_id, name, scopes, models, requests_per_minute,"
    " spend_cap, strict, created_at, expires_at, revoked_at)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_UPDATE = (
    "UPDATE tokens SET name = ?, models = ?, requests_per_minute = ?, spend_cap = ?, strict = ?,"
    " expires_at = ? WHERE "
)
_FIND = "SELECT 1 FROM tokens WHERE "
_UNCHANGED = (
    "id = ? AND revoked_at IS NULL AND name = ? AND COALESCE(models, '') = ?"
    " AND COALESCE(requests_per_minute, -1) = ? AND COALESCE(spend_cap, -1) = ? AND strict = ?"
    " AND COALESCE(expires_at, -1) = ?"
)


def _require_name(name: str) -> None:
    if not 1 <= len(name) <= NAME_CHARACTERS_MAX or not name.isprintable():
        raise InvalidRequest(
            f"A token's name has 1 to {NAME_CHARACTERS_MAX} printable characters.", param="name"
        )


def _or_none(limit: int | str) -> int | None:
    return limit if isinstance(limit, int) else None


def _comparable(limit: str, value: object) -> object:
    """As `_UNCHANGED` has it: nothing equals a null."""
    if value is not None:
        return value
    return "" if limit == "models" else -1


def _token(row: Row) -> tuple[bytes, Token]:
    digest, id_, account_id, name, scopes, models, rpm, cap, strict, *times = row
    created_at, expires_at, revoked_at = (None if t is None else t / 1000 for t in times)
    assert created_at is not None
    token = Token(
        id=id_,
        account_id=account_id,
        name=name,
        scopes=frozenset(json.loads(scopes)),
        models=None if models is None else frozenset(json.loads(models)),
        requests_per_minute=rpm,
        spend_cap=cap,
        strict=bool(strict),
        created_at=created_at,
        expires_at=expires_at,
        revoked_at=revoked_at,
    )
    return digest, token


def _row(digest: bytes, token: Token) -> Row:
    times = (token.created_at, token.expires_at, token.revoked_at)
    return (
        digest,
        token.id,
        token.account_id,
        token.name,
        json.dumps(sorted(token.scopes)),
        None if token.models is None else json.dumps(sorted(token.models)),
        token.requests_per_minute,
        token.spend_cap,
        int(token.strict),
        *(None if t is None else int(t * 1000) for t in times),
    )


def new_secret() -> str:
    body = "tw_" + _base62(secrets.randbits(256), 43)
    return body + _checksum(body)


def _digest(secret: str) -> bytes | None:
    """SHA-256 of a secret of the right shape, else None."""
    if _SHAPE.fullmatch(secret) is None or _checksum(secret[:-6]) != secret[-6:]:
        return None
    return hashlib.sha256(secret.encode()).digest()


def _checksum(text: str) -> str:
    return _base62(zlib.crc32(text.encode()), 6)


def _base62(number: int, width: int) -> str:
    digits: list[str] = []
    for _ in range(width):
        number, digit = divmod(number, 62)
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))

"""Bearer token -> Caller. Guessing is slowed by address; a valid token is never refused for others'
guesses.

Who has been found by a header is remembered with it (`recall`, 0.4 us instead of 4): as long as the
token and the account are the very ones that were found then, the answer would be the same.
"""

from tollway.accounts import Accounts
from tollway.clock import Clock
from tollway.errors import AuthenticationFailed, PermissionDenied, RateLimited, RateWhy
from tollway.gateway.types import Caller
from tollway.rates.base import CHAT, WINDOW_SECONDS, RateLimiter
from tollway.tokens import Tokens

CALLERS_KEPT_MAX = 65_536


class Authenticator:
    """A reload replaces `failures_per_minute`."""

    def __init__(
        self,
        tokens: Tokens,
        accounts: Accounts,
        limiter: RateLimiter,
        failures_per_minute: int,
        clock: Clock,
    ) -> None:
        self._tokens = tokens
        self._accounts = accounts
        self._limiter = limiter
        self.failures_per_minute = failures_per_minute
        self._now = clock.now
        self._callers: dict[bytes | None, Caller] = {}

    def cached_caller(self, authorization: bytes | None) -> Caller | None:
        """Who sent this header before, if nothing about them has changed since; else None, which
        says nothing."""
        caller = self._callers.get(authorization)
        if caller is None:
            return None
        account, token = caller.account, caller.token
        if (
            self._tokens.get(token.id) is token
            and self._accounts.get(account.id) is account
            and (token.expires_at is None or self._now() < token.expires_at)
        ):
            return caller
        del self._callers[authorization]
        return None

    async def authenticate(self, authorization: bytes | None, address: str) -> Caller:
        """Awaits nothing where it finds one: `Gate.admit` relies on that. Raises
        `AuthenticationFailed`, or `RateLimited` where this address has failed too often this
        minute."""
        try:
            token = self._tokens.authenticate(_bearer(authorization))
        except AuthenticationFailed:
            await self._count_failure(address)
            raise
        caller = Caller(self._accounts.get(token.account_id), token, CHAT + token.account_id)
        if len(self._callers) >= CALLERS_KEPT_MAX:
            self._callers.clear()
        self._callers[authorization] = caller
        return caller

    async def _count_failure(self, address: str) -> None:
        take = await self._limiter.take("authentication:" + address, self.failures_per_minute)
        if not take.admitted:
            raise RateLimited(
                f"This address has failed to authenticate {take.state.limit} times within "
                f"{WINDOW_SECONDS:g} s. Check the token, and try again in "
                f"{take.state.reset_seconds:.0f} s.",
                RateWhy(
                    "failed_authentications_per_minute", take.state.limit, take.state.reset_seconds
                ),
            )


def require_scope(caller: Caller, scope: str) -> None:
    if scope not in caller.token.scopes:
        raise PermissionDenied(
            f"This token lacks the scope {scope}; it has {', '.join(sorted(caller.token.scopes))}. "
            f"Use a token with {scope}.",
            code="insufficient_scope",
        )


def require_active_account(caller: Caller) -> None:
    if caller.account.status != "active":
        raise PermissionDenied(
            "This account is frozen: it can be read, and not spent from. Ask its operator.",
            code="account_frozen",
        )


def _bearer(authorization: bytes | None) -> str:
    if authorization is None:
        raise AuthenticationFailed(
            "There is no token in this request. Send `Authorization: Bearer tw_...`."
        )
    scheme, _, secret = authorization.decode("latin-1").partition(" ")
    if scheme.lower() != "bearer" or not secret.strip():
        raise AuthenticationFailed(
            "The Authorization header is not of the form `Bearer tw_...`. Send a token that way."
        )
    return secret.strip()

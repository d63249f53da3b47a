"""Bearer token -> Caller. Guessing is slowed by address; a valid token is never refused for others'
guesses."""

from tollway.accounts import Accounts
from tollway.errors import AuthenticationFailed, PermissionDenied, RateLimited, RateWhy
from tollway.gateway.types import Caller
from tollway.rates.base import WINDOW_SECONDS, RateLimiter
from tollway.tokens import Tokens


class Authenticator:
    def __init__(
        self, tokens: Tokens, accounts: Accounts, limiter: RateLimiter, failures_per_minute: int
    ) -> None:
        self._tokens = tokens
        self._accounts = accounts
        self._limiter = limiter
        self._failures_per_minute = failures_per_minute

    async def authenticate(self, authorization: bytes | None, address: str) -> Caller:
        """Raises `AuthenticationFailed`, or `RateLimited` where this address has failed too often
        this minute."""
        try:
            token = self._tokens.authenticate(_bearer(authorization))
        except AuthenticationFailed:
            await self._count_failure(address)
            raise
        return Caller(self._accounts.get(token.account_id), token)

    async def _count_failure(self, address: str) -> None:
        take = await self._limiter.take("authentication:" + address, self._failures_per_minute)
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

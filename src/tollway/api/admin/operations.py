"""What the operator's commands do, wherever they come from: a command's own process or the control
socket.

Each operation is a method whose signature says what it takes; `execute` finds it by the command's
words and checks the arguments against that signature. What is returned has the shapes of the API.
An operation that changes something writes who did it and why into the audit, in the same
transaction.
"""

import inspect
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Annotated, Literal, get_type_hints

import msgspec
from msgspec import Meta

from tollway.accounts import Account, Accounts
from tollway.api.accounts import transaction_object
from tollway.api.admin.upstreams import upstream_object
from tollway.api.models import model_object
from tollway.api.receipts import receipt_object, signed_receipt
from tollway.api.tokens import token_object
from tollway.catalogue import Catalogue
from tollway.clock import Clock, iso, new_id
from tollway.database.base import Database, Statement
from tollway.errors import Refused, how_many
from tollway.ledger.base import Ledger, Receipt
from tollway.ledger.signing import SigningKey
from tollway.ledger.verify import Violation
from tollway.tokens import Token, Tokens
from tollway.upstreams.watched import Watched
from tollway.usage import DAY_SECONDS, By, sums

DEFAULT_ACCOUNT = "default"
_CREDITS_MAX = 10**15  # far within SQLite's integers, and exact in JavaScript

Amount = Annotated[int, Meta(ge=1, le=_CREDITS_MAX)]
SignedAmount = Annotated[int, Meta(ge=-_CREDITS_MAX, le=_CREDITS_MAX)]
Limit = Annotated[int, Meta(ge=1, le=1_000_000)]
Lifetime = Annotated[int, Meta(ge=1, le=10**10)]
"""In seconds."""
Models = Annotated[Sequence[str], Meta(min_length=1)]
Moment = Annotated[float, Meta(ge=0, le=2**40)]
"""Seconds since 1970."""
Text = Annotated[str, Meta(min_length=1, max_length=200)]

Object = dict[str, object]
Operation = Callable[..., Awaitable[Object]]


class Operations:
    """`genesis(account_id)` is where the ledger begins an account's chain of entries; `verify`
    recomputes the books as they are on disk, with what this process holds in memory.
    A reload replaces `starting_credits`."""

    def __init__(
        self,
        *,
        accounts: Accounts,
        tokens: Tokens,
        ledger: Ledger,
        catalogue: Catalogue,
        database: Database,
        verify: Callable[[], Awaitable[Sequence[Violation]]],
        clock: Clock,
        genesis: Callable[[str], bytes],
        signing_key: SigningKey,
        starting_credits: int,
    ) -> None:
        self._accounts = accounts
        self._tokens = tokens
        self._ledger = ledger
        self._catalogue = catalogue
        self._database = database
        self._verify = verify
        self._clock = clock
        self._genesis = genesis
        self._signing_key = signing_key
        self.starting_credits = starting_credits
        self._operations: Mapping[str, Operation] = {
            "account create": self.account_create,
            "account list": self.account_list,
            "account show": self.account_show,
            "account freeze": self.account_freeze,
            "account unfreeze": self.account_unfreeze,
            "account set": self.account_set,
            "credit top-up": self.credit_top_up,
            "credit refund": self.credit_refund,
            "credit adjust": self.credit_adjust,
            "token issue": self.token_issue,
            "token list": self.token_list,
            "token set": self.token_set,
            "token revoke": self.token_revoke,
            "receipt show": self.receipt_show,
            "model list": self.model_list,
            "upstream list": self.upstream_list,
            "ledger verify": self.ledger_verify,
            "usage": self.usage,
        }
        self._upstreams: Callable[[], Iterable[Watched]] | None = None

    def watch(self, upstreams: Callable[[], Iterable[Watched]]) -> None:
        """There are upstreams only while a server runs."""
        self._upstreams = upstreams

    async def execute(self, command: str, arguments: Mapping[str, object], *, actor: str) -> Object:
        """`actor` is who asks, for the audit. Raises a `TollwayError` that says why not."""
        operation = self._operations.get(command)
        if operation is None:
            raise Refused(
                f"There is no command {command!r:.80} here. The server may be of another version: "
                "restart it."
            )
        return await operation(**_checked(operation, arguments, actor))

    async def ensure_default_account(self) -> str | None:
        """Makes the first start's account, with the starting credits and a token: the token's
        secret if it was issued now.

        The token comes last, so a start that died before it is made good by the next.
        """
        account = self._find(DEFAULT_ACCOUNT)
        if account is None:
            account = await self._open(DEFAULT_ACCOUNT, self.starting_credits, actor="tollway")
        elif self._tokens.list(account.id):
            return None
        _, secret = await self._tokens.issue(
            account.id,
            name="first",
            scopes=("llm-all", "account"),
            audit=lambda token: self._audit("tollway", "token issue", token.id),
        )
        return secret

    # --- accounts ---------------------------------------------------------------------------------

    async def account_create(
        self,
        *,
        name: str,
        credits: Annotated[int, Meta(ge=0, le=_CREDITS_MAX)] | None = None,
        actor: str,
    ) -> Object:
        credits = self.starting_credits if credits is None else credits
        return self._account(await self._open(name, credits, actor=actor))

    async def account_list(self) -> Object:
        return {"data": [self._account(account) for account in self._accounts.list()]}

    async def account_show(self, *, name: str) -> Object:
        return self._account(self._accounts.named(name))

    async def account_freeze(self, *, name: str, actor: str) -> Object:
        audit = self._audit(actor, "account freeze", self._accounts.named(name).id)
        return self._account(await self._accounts.freeze(name, audit))

    async def account_unfreeze(self, *, name: str, actor: str) -> Object:
        audit = self._audit(actor, "account unfreeze", self._accounts.named(name).id)
        return self._account(await self._accounts.unfreeze(name, audit))

    async def account_set(
        self,
        *,
        name: str,
        requests_per_minute: Limit | Literal["default"] | None = None,
        concurrent_requests: Limit | Literal["default"] | None = None,
        actor: str,
    ) -> Object:
        audit = self._audit(
            actor,
            "account set",
            self._accounts.named(name).id,
            requests_per_minute=requests_per_minute,
            concurrent_requests=concurrent_requests,
        )
        account = await self._accounts.set_limits(
            name,
            audit,
            requests_per_minute=requests_per_minute,
            concurrent_requests=concurrent_requests,
        )
        return self._account(account)

    # --- credit -----------------------------------------------------------------------------------

    async def credit_top_up(
        self, *, account: str, amount: Amount, reference: Text | None = None, actor: str
    ) -> Object:
        """The same reference adds once: a second time returns the first entry, with `isNew` false,
        and what differs from it is refused."""
        owner = self._accounts.named(account)
        entry, is_new = await self._ledger.add(
            owner.id,
            amount,
            kind="top_up",
            ref=reference or new_id("top", self._clock.now()),
            description="top-up" if reference is None else f"top-up {reference}",
            audit=self._audit(actor, "credit top-up", owner.id, amount=amount, reference=reference),
        )
        if (entry.account_id, entry.amount) != (owner.id, amount):
            other = self._accounts.get(entry.account_id).name
            raise Refused(
                f"The reference {reference} was used on {iso(entry.created_at)} to add "
                f"{how_many(entry.amount, 'credit')} to {other}. Use another one for another "
                "top-up."
            )
        return {**_as_object(transaction_object(entry)), "isNew": is_new}

    async def credit_refund(
        self,
        *,
        request_id: str,
        amount: Amount | None = None,
        reason: Text | None = None,
        actor: str,
    ) -> Object:
        receipt = await self._receipt(request_id)
        if receipt.charged == 0:
            raise Refused(f"The request {request_id} cost nothing, so there is nothing to refund.")
        refunded = receipt.charged if amount is None else amount
        if refunded > receipt.charged:
            raise Refused(
                f"The request {request_id} was charged {how_many(receipt.charged, 'credit')}: "
                f"{refunded} cannot be refunded. Give --amount {receipt.charged} or less."
            )
        entry, is_new = await self._ledger.add(
            receipt.account_id,
            refunded,
            kind="refund",
            ref=request_id,
            description="refund" if reason is None else f"refund: {reason}",
            audit=self._audit(actor, "credit refund", request_id, reason or "", amount=refunded),
        )
        if not is_new:
            raise Refused(
                f"The request {request_id} was refunded {how_many(entry.amount, 'credit')} on "
                f"{iso(entry.created_at)}, and a request is refunded once. `tollway credit "
                "adjust` corrects by hand."
            )
        return _as_object(transaction_object(entry))

    async def credit_adjust(
        self, *, account: str, amount: SignedAmount, reason: Text, actor: str
    ) -> Object:
        if amount == 0:
            raise Refused(
                "An adjustment by 0 changes nothing. Give a number of credits, such as 50 or -50."
            )
        owner = self._accounts.named(account)
        entry, _ = await self._ledger.add(
            owner.id,
            amount,
            kind="adjustment",
            ref=new_id("adj", self._clock.now()),
            description=f"adjustment: {reason}",
            audit=self._audit(actor, "credit adjust", owner.id, reason, amount=amount),
        )
        return _as_object(transaction_object(entry))

    # --- tokens, receipts, models, ledger ---------------------------------------------------------

    async def token_issue(
        self,
        *,
        account: str,
        scopes: Sequence[str] = ("llm-all",),
        name: str = "token",
        expires_in_seconds: Lifetime | None = None,
        models: Sequence[str] | None = None,
        requests_per_minute: Limit | None = None,
        spend_cap: Amount | None = None,
        strict: bool = False,
        actor: str,
    ) -> Object:
        owner = self._accounts.named(account)
        self._require_models(models or ())
        token, secret = await self._tokens.issue(
            owner.id,
            name=name,
            scopes=scopes,
            models=models,
            expires_in_seconds=expires_in_seconds,
            requests_per_minute=requests_per_minute,
            spend_cap=spend_cap,
            strict=strict,
            audit=lambda token: self._audit(
                actor, "token issue", token.id, account=owner.id, scopes=sorted(token.scopes)
            ),
        )
        return {
            **self._token(token),
            "personal_access_token": secret,
            "expires_in": expires_in_seconds,
        }

    async def token_list(self) -> Object:
        return {"data": [self._token(token) for token in self._tokens.list()]}

    async def token_set(
        self,
        *,
        token_id: str,
        name: str | None = None,
        models: Models | Literal["all"] | None = None,
        requests_per_minute: Limit | Literal["default"] | None = None,
        expires_in_seconds: Lifetime | Literal["never"] | None = None,
        spend_cap: Amount | None = None,
        strict: bool | None = None,
        actor: str,
    ) -> Object:
        """The audit has what has changed."""
        if models is not None and models != "all":
            self._require_models(models)

        def audit(before: Token, after: Token, only_if: Statement) -> Statement:
            was, now = _as_object(token_object(before)), _as_object(token_object(after))
            changed = [limit for limit in now if was[limit] != now[limit]]
            return self._audit(
                actor,
                "token set",
                token_id,
                only_if=only_if,
                before={limit: was[limit] for limit in changed},
                after={limit: now[limit] for limit in changed},
            )

        token = await self._tokens.set_limits(
            token_id,
            audit,
            name=name,
            models=models,
            requests_per_minute=requests_per_minute,
            expires_in_seconds=expires_in_seconds,
            spend_cap=spend_cap,
            strict=strict,
        )
        return self._token(token)

    async def token_revoke(self, *, token_id: str, actor: str) -> Object:
        audit = self._audit(actor, "token revoke", token_id)
        return self._token(await self._tokens.revoke(token_id, audit))

    async def receipt_show(self, *, request_id: str, signed: bool = False) -> Object:
        receipt = await self._receipt(request_id)
        if signed:
            return signed_receipt(receipt, self._signing_key)
        return _as_object(receipt_object(receipt))

    async def model_list(self) -> Object:
        return {"data": [_as_object(model_object(model)) for model in self._catalogue.list(None)]}

    async def upstream_list(self) -> Object:
        if self._upstreams is None:
            raise Refused(
                "No server runs here, and only a running one knows how its upstreams are. Start it "
                "with `tollway serve`, or check --data-dir."
            )
        now = self._clock.now()
        return {"data": [_as_object(upstream_object(one, now)) for one in self._upstreams()]}

    async def ledger_verify(self) -> Object:
        violations = await self._verify()
        return {"data": [_as_object(violation) for violation in violations]}

    async def usage(
        self, *, by: By, since: Moment, until: Moment, account: str | None = None
    ) -> Object:
        account_id = None if account is None else self._accounts.named(account).id
        if since >= until:
            raise Refused(
                f"Nothing comes on or after {iso(since)} and before {iso(until)}. Let `until` be "
                "later than `since`."
            )
        found = await sums(self._database, by, since, until, account_id)
        return {
            "since": iso(since),
            "until": iso(until),
            "data": [
                {
                    **self._key(by, one.key),
                    "requests": one.requests,
                    "promptTokens": one.input_tokens,
                    "completionTokens": one.output_tokens,
                    "cachedTokens": one.cached_tokens,
                    "reasoningTokens": one.reasoning_tokens,
                    "credits": one.credits,
                }
                for one in found
            ],
        }

    # --- parts ------------------------------------------------------------------------------------

    def _find(self, name: str) -> Account | None:
        return next((account for account in self._accounts.list() if account.name == name), None)

    def _require_models(self, models: Iterable[str]) -> None:
        for model in models:
            if model not in self._catalogue:
                offered = ", ".join(offer.id for offer in self._catalogue.list(None))
                raise Refused(f"There is no model {model!r:.200}. The models are {offered}.")

    async def _receipt(self, request_id: str) -> Receipt:
        receipt = await self._ledger.receipt(request_id)
        if receipt is None:
            raise Refused(
                f"There is no receipt of a request {request_id!r:.80}. Its X-Request-Id is meant, "
                "and a request that still runs has none yet."
            )
        return receipt

    async def _open(self, name: str, credits: int, *, actor: str) -> Account:
        """The account and its first credits come to be together or not at all."""

        async def write(account: Account, row: Statement) -> None:
            audit = self._audit(actor, "account create", account.id, credits=credits)
            if credits == 0:
                await self._database.execute(row, audit)
                return
            await self._ledger.add(
                account.id,
                credits,
                kind="grant",
                ref=f"grant:{account.id}",
                description="starting credits",
                audit=audit,
                opening=row,
            )

        return await self._accounts.create(name, chain_head=self._genesis, write=write)

    def _audit(
        self,
        actor: str,
        action: str,
        subject: str,
        reason: str = "",
        *,
        only_if: Statement | None = None,
        **details: object,
    ) -> Statement:
        """Written where the query `only_if` finds a row."""
        now = self._clock.now()
        row = (new_id("aud", now), actor, action, subject, reason)
        where, parameters = "", ()
        if only_if is not None:
            where, parameters = f" WHERE EXISTS ({only_if[0]})", only_if[1]
        return (
            "INSERT INTO audit (id, actor, action, subject, reason, details, created_at)"
            " SELECT ?, ?, ?, ?, ?, ?, ?" + where,
            (*row, json.dumps(details), int(now * 1000), *parameters),
        )

    def _account(self, account: Account) -> Object:
        """A limit is null where it is the installation's; the balance includes what is held."""
        held = self._ledger.held(account.id)
        return {
            "id": account.id,
            "name": account.name,
            "status": account.status,
            "creditBalance": self._ledger.available(account.id) + held,
            "creditsHeld": held,
            "createdAt": iso(account.created_at),
            "limits": {
                "requestsPerMinute": account.requests_per_minute,
                "concurrentRequests": account.concurrent_requests,
            },
        }

    def _key(self, by: By, key: str | int) -> Object:
        """What the sums are of, by the names that an operator knows."""
        if by == "day":
            return {"day": iso(int(key) * DAY_SECONDS)[:10]}
        if by == "account":
            return {"account": self._accounts.get(str(key)).name}
        token = self._tokens.get(str(key)) if by == "token" else None
        if token is None:
            return {by: key}
        return {
            "token": key,
            "name": token.name,
            "account": self._accounts.get(token.account_id).name,
        }

    def _token(self, token: Token) -> Object:
        """With what it may spend still, null where it has no spend cap."""
        account, cap = self._accounts.get(token.account_id), token.spend_cap
        left = None if cap is None else self._ledger.left_of_cap(token.id, cap)
        return {**_as_object(token_object(token)), "spendCapLeft": left, "account": account.name}


def _as_object(struct: msgspec.Struct) -> Object:
    return msgspec.to_builtins(struct)


def _checked(
    operation: Operation, arguments: Mapping[str, object], actor: str
) -> dict[str, object]:
    """The arguments as the operation's signature wants them. Raises `Refused`."""
    parameters = inspect.signature(operation).parameters
    given = dict(arguments)
    if "actor" in parameters:
        given["actor"] = actor  # whatever was said: the caller is asked, not believed
    if unknown := sorted(given.keys() - parameters.keys()):
        raise Refused(f"{unknown[0]!r:.80} is no argument of this command.")
    for name, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and name not in given:
            raise Refused(f"{_words(name)} is missing.")
    types = get_type_hints(operation, include_extras=True)
    return {name: _converted(name, value, types[name]) for name, value in given.items()}


def _converted(name: str, value: object, type_: object) -> object:
    try:
        return msgspec.convert(value, type_)
    except msgspec.ValidationError as error:
        why = str(error).replace("`", "").partition(" - at ")[0]
        shown = f" {value}" if type(value) is int else ""
        raise Refused(f"The {_words(name)}{shown} cannot be: {why[:1].lower()}{why[1:]}.") from None


def _words(name: str) -> str:
    return name.replace("_", " ")

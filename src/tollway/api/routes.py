"""Every route but the metered one, which `edge.py` takes before it would come here."""

from functools import partial

from starlette.routing import Route, Router
from starlette.types import ASGIApp

from tollway.api import accounts, health, models, openapi, quote, receipts, tokens
from tollway.api.operation import ApiParts, Metered, Operation, Page, Resource, Unknown
from tollway.metrics.exposition import CONTENT_TYPE

BASES = ("/api/v1", "/v1")


def create_app(parts: ApiParts) -> ASGIApp:
    routes = [
        Route(base + path, resource)
        for path, resource in _resources(parts).items()
        for base in BASES
    ]
    routes += [Route(path, page) for path, page in _pages(parts).items()]
    # A redirect to the path without its last slash would be one more answer to explain.
    return Router(routes, redirect_slashes=False, default=Unknown(parts))


def _resources(parts: ApiParts) -> dict[str, ASGIApp]:
    return {
        "/chat/completions": Metered(parts),
        "/chat/completions/quote": Resource(parts, POST=Operation("quote", "llm-all", quote.quote)),
        "/models": Resource(parts, GET=Operation("models", "llm-all", models.list_models)),
        # An id may have a slash in it, which arrives as itself or as %2F.
        "/models/{model_id:path}": Resource(
            parts, GET=Operation("model", "llm-all", models.show_model)
        ),
        "/accounts/me": Resource(parts, GET=Operation("account", None, accounts.show_account)),
        "/credit-transactions": Resource(
            parts, GET=Operation("transactions", None, accounts.list_transactions)
        ),
        # Before the receipts: no request's id is this, they all begin with `req_`.
        "/receipts/public-key": Page(
            parts, lambda: (200, receipts.receipt_key(parts.signing_key)), b"application/json"
        ),
        "/receipts/{request_id}": Resource(
            parts, GET=Operation("receipt", None, receipts.show_receipt)
        ),
        "/auth/pat": Resource(
            parts,
            POST=Operation("token_issue", "account", tokens.issue_token),
            GET=Operation("token_list", "account", tokens.list_tokens),
        ),
        "/auth/pat/{token_id}": Resource(
            parts, DELETE=Operation("token_revoke", "account", tokens.revoke_token)
        ),
    }


def _pages(parts: ApiParts) -> dict[str, Page]:
    json = b"application/json"
    document = openapi.document_bytes(parts.version)
    return {
        "/healthz": Page(parts, health.healthz, json),
        "/readyz": Page(parts, partial(health.readyz, parts.not_ready), json),
        "/metrics": Page(parts, partial(_metrics, parts), CONTENT_TYPE.encode()),
        "/openapi.json": Page(parts, lambda: (200, document), json),
    }


async def _metrics(parts: ApiParts) -> tuple[int, bytes]:
    own = parts.exposition.page
    return 200, own() if parts.siblings is None else await parts.siblings.page(own)

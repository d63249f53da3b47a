"""What an upstream says that a request used. It decides money, so only what can be true is
believed."""

from typing import Any, TypeGuard, cast

from msgspec import Struct

TOKENS_BELIEVED_MAX = 2**40


Details = dict[str, Any]


class UsageReport(Struct, frozen=True, gc=False):
    """Whole numbers of at least zero. Of the details, numbers pass to the client as they came."""

    input_tokens: int
    output_tokens: int
    input_details: Details | None = None
    output_details: Details | None = None


def read_usage(value: object) -> UsageReport | None:
    """None where there is no usage, or none that could be believed (text, negative, missing,
    absurdly large)."""
    if not isinstance(value, dict):
        return None
    usage = cast("Details", value)
    input_tokens: object = usage.get("prompt_tokens")
    output_tokens: object = usage.get("completion_tokens")
    if output_tokens is None and "prompt_tokens" in usage:
        output_tokens = 0  # SGLang sends null before the first token
    if not (_is_count(input_tokens) and _is_count(output_tokens)):
        return None
    return UsageReport(
        input_tokens,
        output_tokens,
        _details(usage.get("prompt_tokens_details")),
        _details(usage.get("completion_tokens_details")),
    )


def _details(value: object) -> Details | None:
    if not isinstance(value, dict):
        return None
    details = cast("Details", value)
    return {name: of for name, of in details.items() if of is None or _is_count(of)}


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= TOKENS_BELIEVED_MAX

"""What an upstream says that a request used. It decides money, so only what can be true is believed."""

from msgspec import Struct

TOKENS_BELIEVED_MAX = 2**40


class UsageReport(Struct, frozen=True, gc=False):
    """Whole numbers of at least zero. The details pass to the client as they came."""

    input_tokens: int
    output_tokens: int
    input_details: object = None
    output_details: object = None


def read_usage(value: object) -> UsageReport | None:
    """None where there is no usage, or none that could be believed (text, negative, missing, absurdly large)."""
    if not isinstance(value, dict):
        return None
    input_tokens = value.get("prompt_tokens")
    output_tokens = value.get("completion_tokens")
    if output_tokens is None and "prompt_tokens" in value:
        output_tokens = 0  # SGLang sends null before the first token
    if not (_is_count(input_tokens) and _is_count(output_tokens)):
        return None
    return UsageReport(
        input_tokens,
        output_tokens,
        value.get("prompt_tokens_details"),
        value.get("completion_tokens_details"),
    )


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= TOKENS_BELIEVED_MAX

"""What an upstream says that a request used. It decides money, so only what can be true is
believed."""

from typing import Any, TypeGuard, cast

from msgspec import Struct

TOKENS_BELIEVED_MAX = 2**32
"""Beyond every model's context; and as many input and as many output tokens, at the highest rates
that can be set, are reckoned within the 64 bits of a database's whole numbers."""


Details = dict[str, Any]


class UsageReport(Struct, frozen=True, gc=False):
    """Whole numbers of at least zero; no part is more than its whole. Of the details, numbers pass
    to the client, the two parts among them as they are believed."""

    input_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    input_details: Details | None = None
    output_details: Details | None = None


def read_usage(value: Any) -> UsageReport | None:
    """None where there is no usage, or none that could be believed (text, negative, missing,
    absurdly large)."""
    if not isinstance(value, dict):
        return None
    usage: Details = value  # pyright: ignore[reportUnknownVariableType] (cast() is a call)
    input_tokens: object = usage.get("prompt_tokens")
    output_tokens: object = usage.get("completion_tokens")
    if (
        # Nothing more than the three usual ones; vLLM adds one that says nothing.
        (len(usage) == 3 or (len(usage) == 4 and usage.get("prompt_tokens_details", 0) is None))
        and "total_tokens" in usage
        and type(input_tokens) is int
        and type(output_tokens) is int
        and 0 <= input_tokens <= TOKENS_BELIEVED_MAX
        and 0 <= output_tokens <= TOKENS_BELIEVED_MAX
    ):
        return UsageReport(input_tokens, output_tokens)
    if output_tokens is None and "prompt_tokens" in usage:
        output_tokens = 0  # SGLang sends null before the first token
    if not (_is_count(input_tokens) and _is_count(output_tokens)):
        return None
    input_details = _details(usage.get("prompt_tokens_details"))
    output_details = _details(usage.get("completion_tokens_details"))
    for elsewhere in _CACHED_ELSEWHERE:
        if _is_count(of := usage.get(elsewhere)):
            input_details = {"cached_tokens": of} | (input_details or {})
    if _is_count(of := usage.get("reasoning_tokens")):  # SGLang
        output_details = {"reasoning_tokens": of} | (output_details or {})
    return UsageReport(
        input_tokens,
        output_tokens,
        _part(input_details, "cached_tokens", input_tokens),
        _part(output_details, "reasoning_tokens", output_tokens),
        input_details,
        output_details,
    )


def with_reasoning_apart(value: object) -> object:
    """Adds to the output the reasoning that only `total_tokens` counts (Gemini). Unchanged where
    the total is not credible."""
    if not isinstance(value, dict):
        return value
    usage = cast("Details", value)
    input_tokens, total = usage.get("prompt_tokens"), usage.get("total_tokens")
    answered = usage.get("completion_tokens")
    if answered is None:
        answered = 0
    if not (_is_count(input_tokens) and _is_count(total) and _is_count(answered)):
        return usage
    thought = total - input_tokens - answered
    if thought <= 0:
        return usage
    details = cast("Details", usage.get("completion_tokens_details") or {})
    return {
        **usage,
        "completion_tokens": answered + thought,
        "completion_tokens_details": {"reasoning_tokens": thought, **details},
    }


# DeepSeek and Moonshot say it beside the count of the prompt.
_CACHED_ELSEWHERE = ("prompt_cache_hit_tokens", "cached_tokens")


def _part(details: Details | None, name: str, whole: int) -> int:
    """How many of the `whole` are this part. A number that is larger is cut to the whole, also in
    the details, which the client sees."""
    said = None if details is None else details.get(name)
    if details is None or said is None:
        return 0
    details[name] = min(said, whole)
    return details[name]


def _details(value: object) -> Details | None:
    if not isinstance(value, dict):
        return None
    details = cast("Details", value)
    return {name: of for name, of in details.items() if of is None or _is_count(of)}


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= TOKENS_BELIEVED_MAX

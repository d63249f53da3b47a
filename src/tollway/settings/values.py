"""What a setting's value may be, where its type alone does not say it: secrets, addresses, ranges,
names."""

from typing import Annotated, Literal
from urllib.parse import urlsplit

from msgspec import Meta

EMBEDDED = "embedded"
"""The upstream that is always there without being declared: the model that Tollway runs itself."""

CREDITS_MAX = 10**15  # JavaScript's clients read whole numbers exactly up to 9 * 10^15
RATE_MAX = 10**9
"""With as many tokens as an upstream is believed (`wire/usage.py`) the databases still reckon in 64
bits."""
_TOKENS_MAX = 10**9
IMAGE_BYTES_MAX = 3 * 1024 * 1024  # in base64 as much as a request's body may have
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,199}$(?!\n)"
"""`$` alone allows a line feed behind it, and `\\Z` is no pattern of JSON Schema's."""

Parameter = Literal[
    "frequency_penalty",
    "logit_bias",
    "logprobs",
    "metadata",
    "modalities",
    "moderation",
    "parallel_tool_calls",
    "prediction",
    "presence_penalty",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "reasoning_effort",
    "response_format",
    "safety_identifier",
    "seed",
    "service_tier",
    "stop",
    "store",
    "temperature",
    "tool_choice",
    "tools",
    "top_logprobs",
    "top_p",
    "user",
    "verbosity",
]
"""The request's optional fields. A test keeps it equal to
`tollway.wire.requests.OPTIONAL_FIELDS`."""

EMBEDDED_PARAMETERS: frozenset[Parameter] = frozenset(
    {
        "frequency_penalty",
        "logit_bias",
        "logprobs",
        "parallel_tool_calls",
        "presence_penalty",
        "response_format",
        "seed",
        "stop",
        "temperature",
        "tool_choice",
        "tools",
        "top_logprobs",
        "top_p",
    }
)
"""Those that the embedded model heeds. A test keeps them equal to what its upstream translates."""

DialectName = Literal[
    "generic",
    "vllm",
    "sglang",
    "ollama",
    "llama-server",
    "tgi",
    "openai",
    "azure",
    "openrouter",
    "mistral",
    "deepseek",
    "groq",
    "cerebras",
    "together",
    "anthropic",
    "gemini",
]
"""A test keeps it equal to `tollway.upstreams.dialects.DIALECTS`."""

Rate = Annotated[int, Meta(ge=0, le=RATE_MAX)]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]
Tokens = Annotated[int, Meta(ge=1, le=_TOKENS_MAX)]


class Secret:
    """A value that no `repr`, log or error shows; `reveal` is for the one place that uses it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Secret(...)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)


class StoreAddress:
    """Where something is kept: `sqlite` or `memory` here, or the URL of a server. `str` and `repr`
    leave its password out; `reveal` is for the one place that connects."""

    __slots__ = ("_address",)

    def __init__(self, address: str) -> None:
        self._address = address

    def reveal(self) -> str:
        return self._address

    @property
    def scheme(self) -> str:
        """`postgresql`, `valkey` ...; empty where it is not a URL."""
        scheme, separator, _ = self._address.partition("://")
        return scheme if separator else ""

    def __str__(self) -> str:
        if not self.scheme:
            return self._address
        parts = urlsplit(self._address)
        user = f"{parts.username}@" if parts.username else ""
        port = "" if parts.port is None else f":{parts.port}"
        return f"{self.scheme}://{user}{parts.hostname or ''}{port}{parts.path}"

    def __repr__(self) -> str:
        return f"StoreAddress({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StoreAddress) and self._address == other._address

    def __hash__(self) -> int:
        return hash(self._address)

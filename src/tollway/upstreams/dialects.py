"""What servers that speak OpenAI's API do differently: one row for each, and how a row is used.

A row says how a server is asked: the name of the cap on length, whether it understands a wish for
usage at the end of a stream, which fields it does not understand or refuses, what it calls them,
and how it takes its key. And it says what its replies look like: where reasoning is, the words for
an end, where the parts of the usage are, the statuses of one that is too busy, and what it says of
a conversation that is too long.

Asking needs the row; reading does not. The shapes of replies do not contradict one another, so all
of them are accepted from any server, and `GENERIC`, the row of a server that nothing is said of, is
asked as OpenAI documents it. The one exception is how Gemini counts output
(`counts_reasoning_apart`).

A field that a server does not understand is not sent to it. Where no upstream of a model
understands it, that is the model's own limit, told as such (`understood_by`).
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec
from msgspec import Struct

from tollway.wire.requests import OPTIONAL_FIELDS, REWRITTEN_FIELDS, message_extras

# Fields that OpenAI has for what it alone runs: storage, moderation, tiers, its cache's handles.
OPENAIS_OWN = frozenset(
    {
        "metadata",
        "modalities",
        "moderation",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "verbosity",
    }
)
_LOGPROBS = frozenset({"logprobs", "top_logprobs"})
_PENALTIES = frozenset({"frequency_penalty", "presence_penalty"})

_CACHED = ("prompt_tokens_details.cached_tokens",)
_REASONING = ("completion_tokens_details.reasoning_tokens",)

KeyHeader = Literal["authorization", "api-key"]


class Dialect(Struct, frozen=True, kw_only=True):
    """One row. `ends` are its words for an end that is no failure, beside OpenAI's own; `too_busy`
    the statuses that mean "not now"; `too_long` what it says of a conversation that is."""

    name: str
    title: str

    cap: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    asks_for_usage: bool = True
    dropped: frozenset[str] = frozenset()
    renamed: Mapping[str, str] = {}
    choices_max: int | None = None
    top_p_below: float | None = None
    takes_developer: bool = True
    takes_names: bool = True
    takes_reasoning: bool = True
    takes_details: bool = False
    takes_signatures: bool = False
    call_ids: Literal["any", "nine letters or digits"] = "any"
    key_header: KeyHeader = "authorization"

    reasoning: tuple[str, ...] = ()
    ends: Mapping[str, str] = {}
    cached_tokens: tuple[str, ...] = _CACHED
    reasoning_tokens: tuple[str, ...] = _REASONING
    counts_reasoning_apart: bool = False
    too_busy: frozenset[int] = frozenset({429, 503})
    too_long: tuple[str, ...] = ()

    @property
    def rewrites(self) -> bool:
        """Whether what a client sent has to be looked through for this server."""
        return bool(
            self.dropped
            or self.renamed
            or self.choices_max is not None
            or self.top_p_below is not None
            or not self.takes_developer
            or not self.takes_names
            or self.call_ids != "any"
        )

    @property
    def reasoning_fields(self) -> tuple[str, ...]:
        """Of a message that goes back to it. (Mistral's parts of the content are no field.)"""
        if not self.takes_reasoning:
            return ()
        return tuple(name for name in self.reasoning if name.isidentifier())

    @property
    def extras_taken(self) -> frozenset[str]:
        """Those of the `message_extras` that it takes as clients send them."""
        taken = {
            "reasoning_content": self.reasoning_fields == ("reasoning_content",),
            "reasoning_details": self.takes_details,
            "extra_content": self.takes_signatures,
        }
        return frozenset(name for name, is_taken in taken.items() if is_taken)


_ROWS = (
    # Whatever is not one of the others. It is asked as OpenAI's reference says, with the older name
    # of the cap, which all of them know.
    Dialect(name="generic", title="Any compatible server", reasoning=("reasoning_content",)),
    # vllm-project/vllm: vllm/entrypoints/openai (protocol and serving_chat). Unknown fields are
    # ignored. `reasoning` replaced `reasoning_content` late in 2025; some versions send both.
    Dialect(
        name="vllm",
        title="vLLM",
        reasoning=("reasoning", "reasoning_content"),
        too_long=(r"maximum context length", r"max_model_len", r"longer than the maximum model"),
    ),
    # sgl-project/sglang: python/sglang/srt/entrypoints/openai/protocol.py. `abort` is a failure;
    # `usage.reasoning_tokens` stands beside the counts; completion_tokens is null before a token.
    Dialect(
        name="sglang",
        title="SGLang",
        reasoning=("reasoning_content",),
        reasoning_tokens=("reasoning_tokens", *_REASONING),
        too_long=(r"longer than the model's context",),
    ),
    # ollama/ollama: openai/openai.go (ChatCompletionRequest has these fields and ignores others;
    # NewError gives the error's types; `role` on every delta). 503 "server busy" when its queue is
    # full: server/sched.go. A prompt that is too long is cut by the server, not refused.
    Dialect(
        name="ollama",
        title="Ollama",
        dropped=OPENAIS_OWN | {"logit_bias", "parallel_tool_calls", "user"},
        choices_max=1,
        takes_developer=False,
        reasoning=("reasoning",),
        cached_tokens=(),
        reasoning_tokens=(),
    ),
    # ggml-org/llama.cpp: tools/server. The code of an error is the HTTP status, a number.
    Dialect(
        name="llama-server",
        title="llama-server (llama.cpp)",
        reasoning=("reasoning_content",),
        reasoning_tokens=(),
        too_long=(r"exceed_context_size", r"exceeds the available context size"),
    ),
    # huggingface/text-generation-inference: router/src (ChatRequest; validation.rs refuses
    # top_p = 1; `n` and `logit_bias` are read and unused). 429 when it is overloaded, 422 when a
    # request is invalid. Version 2 sends a stream's tool call as an object and not in a list, and
    # the arguments of a whole reply's call as an object and not as text.
    Dialect(
        name="tgi",
        title="TGI (Text Generation Inference)",
        dropped=OPENAIS_OWN | {"logit_bias", "parallel_tool_calls", "reasoning_effort", "user"},
        choices_max=1,
        top_p_below=1.0,
        takes_developer=False,
        ends={"eos_token": "stop", "stop_sequence": "stop"},
        cached_tokens=(),
        reasoning_tokens=(),
        too_long=(r"max_new_tokens. must be <=", r"max_new_tokens must be <=", r"must have less"),
    ),
    # OpenAI's API reference. Its newer models refuse max_tokens.
    Dialect(
        name="openai",
        title="OpenAI",
        cap="max_completion_tokens",
        too_long=(r"maximum context length", r"context_length_exceeded"),
    ),
    # learn.microsoft.com, "Azure OpenAI REST API reference" and "Content filtering": a first chunk
    # without choices says what was filtered of the prompt.
    Dialect(
        name="azure",
        title="Azure OpenAI",
        cap="max_completion_tokens",
        key_header="api-key",
        too_long=(r"maximum context length", r"context_length_exceeded"),
    ),
    # openrouter.ai/docs: "Parameters" (what a model does not know is ignored; there is no `n`),
    # "Streaming" (comments while it works; an error in a chunk with the finish reason `error`),
    # "Reasoning Tokens" (its details are to come back as they were).
    Dialect(
        name="openrouter",
        title="OpenRouter",
        choices_max=1,
        takes_details=True,
        reasoning=("reasoning",),
        too_busy=frozenset({429, 503, 529}),
        too_long=(r"maximum context length",),
    ),
    # docs.mistral.ai/api, and what its refusals say (extra_forbidden): mistralai/
    # platform-docs-public issue 7, editor-code-assistant/eca issue 231, and the names of messages
    # in nomtek/mistralai_client_dart issue 44. Content is a list of parts where a model thinks:
    # BerriAI/litellm issue 16272. Usage comes with the last chunk unasked.
    Dialect(
        name="mistral",
        title="Mistral",
        asks_for_usage=False,
        dropped=(OPENAIS_OWN - {"prediction"}) | _LOGPROBS | {"logit_bias", "user"},
        renamed={"seed": "random_seed"},
        takes_developer=False,
        takes_names=False,
        call_ids="nine letters or digits",
        reasoning=("content[].thinking",),
        ends={"model_length": "length"},
        cached_tokens=_CACHED,
        reasoning_tokens=(),
        too_long=(r"too large for model with \d+ maximum context length",),
    ),
    # api-docs.deepseek.com: "Create Chat Completion" (its fields, the finish reason
    # insufficient_system_resource, which is a failure), "Context Caching" (where cached tokens
    # are), "Rate Limit" (empty lines and comments while a request waits).
    Dialect(
        name="deepseek",
        title="DeepSeek",
        dropped=OPENAIS_OWN | {"logit_bias", "parallel_tool_calls", "seed", "user"},
        choices_max=1,
        takes_developer=False,
        reasoning=("reasoning_content",),
        cached_tokens=("prompt_cache_hit_tokens", *_CACHED),
        too_long=(r"maximum context length",),
    ),
    # console.groq.com/docs/openai (fields that give a 400, names of messages among them, and `n`)
    # and /docs/errors (498: the flex tier is full). tool_use_failed is told as a 400. A model that
    # does not reason refuses reasoning in a message: vercel/ai pull 8057.
    Dialect(
        name="groq",
        title="Groq",
        cap="max_completion_tokens",
        dropped=(OPENAIS_OWN - {"service_tier"}) | _LOGPROBS | {"logit_bias"},
        choices_max=1,
        takes_names=False,
        takes_reasoning=False,
        reasoning=("reasoning",),
        too_busy=frozenset({429, 498, 503}),
        too_long=(r"reduce the length of the messages",),
    ),
    # inference-docs.cerebras.ai, "OpenAI Compatibility": fields that give a 400, and no developer.
    # It takes no field that it does not know: reasoning_content is refused, and `reasoning`, in
    # which it tells it, is taken (QwenLM/qwen-code issue 11045).
    Dialect(
        name="cerebras",
        title="Cerebras",
        cap="max_completion_tokens",
        dropped=OPENAIS_OWN | _PENALTIES | {"logit_bias", "parallel_tool_calls"},
        choices_max=1,
        takes_developer=False,
        reasoning=("reasoning",),
        too_long=(r"reduce the length of the messages",),
    ),
    # docs.together.ai: "Error codes" (403 where input and max_tokens are more than the context),
    # "Chat Completions" (`logprobs` is a number there, and its reply has another shape).
    Dialect(
        name="together",
        title="Together",
        dropped=OPENAIS_OWN | _LOGPROBS | {"parallel_tool_calls", "user"},
        takes_developer=False,
        reasoning=("reasoning", "reasoning_content"),
        ends={"eos": "stop"},
        cached_tokens=("cached_tokens", *_CACHED),
        too_busy=frozenset({429, 503, 529}),
        too_long=(r"max_new_tokens. must be <=", r"max_new_tokens must be <="),
    ),
    # platform.claude.com/docs/en/api/openai-sdk: the fields that it ignores, `n` of 1, no details
    # of usage, no reasoning in replies. 529 is its own overloaded_error.
    Dialect(
        name="anthropic",
        title="Anthropic (OpenAI-compatible route)",
        dropped=OPENAIS_OWN
        | _LOGPROBS
        | _PENALTIES
        | {"logit_bias", "reasoning_effort", "response_format", "seed", "user"},
        choices_max=1,
        cached_tokens=(),
        reasoning_tokens=(),
        too_busy=frozenset({429, 503, 529}),
        too_long=(r"prompt is too long", r"exceed context limit"),
    ),
    # ai.google.dev/gemini-api/docs/openai. Unknown fields are refused, seed, penalties and store
    # among them. An error is in a list. Tool calls of a stream have no index, and end with `stop`
    # (open-webui/computer issue 224, googleapis/python-genai issue 2868). What it thought is in
    # total_tokens alone (mozilla-ai/any-llm pull 1291). Ends name what was filtered after a colon.
    # Signatures: /docs/thought-signatures, of texts mozilla-ai/any-llm pull 1320, and of Vertex AI
    # earendil-works/pi issue 6733. Fireworks and Mistral refuse them (NousResearch/hermes-agent
    # pull 18663).
    Dialect(
        name="gemini",
        title="Gemini (OpenAI-compatible route)",
        dropped=OPENAIS_OWN
        | _LOGPROBS
        | _PENALTIES
        | {"logit_bias", "parallel_tool_calls", "seed", "user"},
        takes_signatures=True,
        ends={"content_filter: ...": "content_filter"},
        counts_reasoning_apart=True,
        too_long=(r"input token count.{0,40}exceeds the maximum",),
    ),
)

DIALECTS: Mapping[str, Dialect] = {row.name: row for row in _ROWS}
GENERIC = DIALECTS["generic"]

# What is accepted of any server.
_COMMON_ENDS: Mapping[str, str] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "content_filter": "content_filter",
    # As OpenAI's older API, and gateways in front of others, call them.
    "function_call": "tool_calls",
    "end_turn": "stop",
    "max_tokens": "length",
    "tool_use": "tool_calls",
    "model_context_window_exceeded": "length",
}
ENDS: Mapping[str, str] = {
    **_COMMON_ENDS,
    **{theirs: ours for row in _ROWS for theirs, ours in row.ends.items()},
}
TOO_BUSY = frozenset(status for row in _ROWS for status in row.too_busy)
TOO_LONG = re.compile(
    "|".join(
        dict.fromkeys(
            [
                r"context.{0,20}(?:length|size|window)",
                r"too many tokens",
                r"input is too long",
                *(words for row in _ROWS for words in row.too_long),
            ]
        )
    ),
    re.IGNORECASE,
)


def understood_by(dialects: Iterable[Dialect]) -> frozenset[str] | None:
    """Of the optional fields, those that at least one of these servers understands; None: all."""
    dropped_by_all = frozenset[str].intersection(*(row.dropped for row in dialects))
    return OPTIONAL_FIELDS - dropped_by_all if dropped_by_all else None


# --- asking ---------------------------------------------------------------------------------------

_NINE = re.compile(r"[A-Za-z0-9]{9}")
_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def fields_for(dialect: Dialect, fields: Mapping[str, object]) -> dict[str, Any]:
    """A request's fields as this server takes them, without those that are written anew."""
    sent: dict[str, Any] = {
        dialect.renamed.get(name, name): value
        for name, value in fields.items()
        if name not in dialect.dropped and name not in REWRITTEN_FIELDS
    }
    if dialect.top_p_below is not None and sent.get("top_p", 0.0) >= dialect.top_p_below:
        del sent["top_p"]  # it means the same as none
    messages: Any = sent.get("messages", ())
    if (
        not dialect.takes_developer
        or not dialect.takes_names
        or dialect.call_ids != "any"
        or not message_extras(messages) <= dialect.extras_taken
    ):
        messages = msgspec.to_builtins(messages)
        reasoning_fields = dialect.reasoning_fields  # made anew each time, and messages are many
        sent["messages"] = [_message_for(dialect, reasoning_fields, one) for one in messages]
    return sent


def _message_for(
    dialect: Dialect, reasoning_fields: Sequence[str], message: dict[str, Any]
) -> dict[str, Any]:
    if not dialect.takes_developer and message.get("role") == "developer":
        message["role"] = "system"
    if not dialect.takes_names:
        message.pop("name", None)
    if (reasoning := message.pop("reasoning_content", None)) is not None:
        message |= dict.fromkeys(reasoning_fields, reasoning)
    if not dialect.takes_details:
        message.pop("reasoning_details", None)
    if not dialect.takes_signatures:
        message.pop("extra_content", None)
    for call in message.get("tool_calls") or ():
        if not dialect.takes_signatures:
            call.pop("extra_content", None)
        if dialect.call_ids != "any":
            call["id"] = _nine(call["id"])
    if dialect.call_ids != "any" and "tool_call_id" in message:
        message["tool_call_id"] = _nine(message["tool_call_id"])
    return message


def _nine(call_id: str) -> str:
    """Another server's id in the form that this one takes; the same one always the same."""
    if _NINE.fullmatch(call_id):
        return call_id
    number = int.from_bytes(hashlib.sha256(call_id.encode()).digest())
    letters: list[str] = []
    for _ in range(9):
        number, rest = divmod(number, len(_BASE62))
        letters.append(_BASE62[rest])
    return "".join(letters)

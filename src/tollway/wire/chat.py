"""The chat completions API's shapes: what a client may send, and what goes back.

Requests are validated against `ChatRequest` (by `requests.py`), and `/openapi.json` is generated
from the same types, so the document cannot drift from the check. What goes upstream is written from
these types too: a field that is not named here does not pass, at any depth. Replies are decoded
into `ChatCompletion` and written from it: a field not named here is not passed on. Source: OpenAI's
chat completions reference, as typed by the openai-python SDK 3.54.
"""

from typing import Annotated, Any, Literal, final

from msgspec import UNSET, Meta, Struct, UnsetType

# --- both -----------------------------------------------------------------------------------------


class Signed(Struct, omit_defaults=True):
    thought_signature: str | None = None


class ExtraContent(Struct, omit_defaults=True):
    """Not OpenAI's: Gemini signs the calls that it makes, and refuses those that come back without.
    It signs texts too. On Vertex AI it may do so under another name."""

    google: Signed | None = None
    vertex: Signed | None = None


# --- request --------------------------------------------------------------------------------------


class CacheBreakpoint(Struct, omit_defaults=True):
    mode: Literal["explicit"]
    ttl: Literal["30m", "12h"] | None = None


class TextPart(Struct, omit_defaults=True, tag_field="type", tag="text"):
    text: str
    prompt_cache_breakpoint: CacheBreakpoint | None = None


class RefusalPart(Struct, omit_defaults=True, tag_field="type", tag="refusal"):
    refusal: str


class ImageAddress(Struct, omit_defaults=True):
    url: str
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(Struct, omit_defaults=True, tag_field="type", tag="image_url"):
    image_url: ImageAddress


class AudioPart(Struct, omit_defaults=True, tag_field="type", tag="input_audio"):
    input_audio: dict[str, str]


class FilePart(Struct, omit_defaults=True, tag_field="type", tag="file"):
    file: dict[str, str]


class CalledFunction(Struct, omit_defaults=True):
    name: str
    arguments: str


class ToolCall(Struct, omit_defaults=True, kw_only=True):
    """`type` may be left out; it is sent on."""

    type: Literal["function"] | UnsetType = UNSET
    id: str
    function: CalledFunction
    extra_content: ExtraContent | None = None


TextParts = Annotated[list[TextPart], Meta(min_length=1)]
UserParts = Annotated[list[TextPart | ImagePart | AudioPart | FilePart], Meta(min_length=1)]
AssistantParts = Annotated[list[TextPart | RefusalPart], Meta(min_length=1)]


class SystemMessage(Struct, omit_defaults=True, tag_field="role", tag="system"):
    content: str | TextParts
    name: str | None = None


class DeveloperMessage(Struct, omit_defaults=True, tag_field="role", tag="developer"):
    content: str | TextParts
    name: str | None = None


class UserMessage(Struct, omit_defaults=True, tag_field="role", tag="user"):
    content: str | UserParts
    name: str | None = None


class AssistantMessage(Struct, omit_defaults=True, tag_field="role", tag="assistant"):
    content: str | AssistantParts | None = None
    name: str | None = None
    refusal: str | None = None
    # Not OpenAI's. Models that think between their calls are to be told what they thought before,
    # and some servers refuse a conversation without it. OpenRouter's details are to come back as
    # they were, and it adds new kinds of them.
    reasoning_content: str | None = None
    reasoning_details: list[dict[str, Any]] | None = None
    extra_content: ExtraContent | None = None
    tool_calls: Annotated[list[ToolCall], Meta(max_length=128)] | None = None


@final
class ToolMessage(Struct, omit_defaults=True, tag_field="role", tag="tool"):
    content: str | TextParts
    tool_call_id: str


Message = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage
MESSAGES_MAX = 1024
Messages = Annotated[list[Message], Meta(min_length=1, max_length=MESSAGES_MAX)]
# `$` alone allows a line feed behind it, and `\Z` is no pattern of JSON Schema's.
FunctionName = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}$(?!\n)")]


class Function(Struct, omit_defaults=True):
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Struct, omit_defaults=True, kw_only=True):
    """`type` may be left out; it is sent on."""

    type: Literal["function"] | UnsetType = UNSET
    function: Function


class NamedFunction(Struct, omit_defaults=True):
    name: str


class NamedToolChoice(Struct, omit_defaults=True, tag_field="type", tag="function"):
    function: NamedFunction


class TextFormat(Struct, omit_defaults=True, tag_field="type", tag="text"):
    pass


class JsonObjectFormat(Struct, omit_defaults=True, tag_field="type", tag="json_object"):
    pass


class JsonSchema(Struct, omit_defaults=True):
    name: FunctionName
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class JsonSchemaFormat(Struct, omit_defaults=True, tag_field="type", tag="json_schema"):
    json_schema: JsonSchema


class StreamOptions(Struct, omit_defaults=True):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Prediction(Struct, omit_defaults=True, tag_field="type", tag="content"):
    content: str | TextParts


class ModerationOf(Struct, omit_defaults=True):
    mode: Literal["score", "block"]


class ModerationPolicy(Struct, omit_defaults=True):
    input: ModerationOf | None = None
    output: ModerationOf | None = None


class Moderation(Struct, omit_defaults=True):
    model: str
    policy: ModerationPolicy | None = None


class PromptCacheOptions(Struct, omit_defaults=True):
    mode: Literal["implicit", "explicit"] | None = None
    ttl: Literal["30m"] | None = None


TokenCount = Annotated[int, Meta(ge=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
StopSequence = Annotated[str, Meta(min_length=1)]
# OpenAI has whole numbers here, some servers take nothing else, and others take any: as they came.
Bias = Annotated[int, Meta(ge=-100, le=100)] | Annotated[float, Meta(ge=-100, le=100)]
INT64 = 2**63


class ForwardedFields(Struct, omit_defaults=True, kw_only=True):
    """The fields of a chat request that an upstream gets as the client sent them."""

    messages: Messages
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    stop: StopSequence | Annotated[list[StopSequence], Meta(min_length=1, max_length=4)] | None = (
        None
    )
    parallel_tool_calls: bool | None = None
    response_format: TextFormat | JsonObjectFormat | JsonSchemaFormat | None = None
    seed: Annotated[int, Meta(ge=-INT64, le=INT64 - 1)] | None = None
    n: Annotated[int, Meta(ge=1, le=4)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    logit_bias: dict[str, Bias] | None = None
    user: str | None = None
    metadata: (
        Annotated[dict[str, Annotated[str, Meta(max_length=512)]], Meta(max_length=16)] | None
    ) = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = (
        None
    )
    verbosity: Literal["low", "medium", "high"] | None = None
    store: bool | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast"] | None = None
    prediction: Prediction | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: PromptCacheOptions | None = None
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = None
    safety_identifier: str | None = None
    moderation: Moderation | None = None
    modalities: list[Literal["text", "audio"]] | None = None
    # The last two, for what is known of them already is written behind the others (`tools.py`).
    tools: Annotated[list[Tool], Meta(max_length=128)] | None = None
    tool_choice: str | NamedToolChoice | None = None


class ChatRequest(ForwardedFields, omit_defaults=True, kw_only=True):
    """Every field of OpenAI's chat request that Tollway takes. None means absent, everywhere. The
    fields that are its own are those of `RewrittenFields`; in JSON they come last."""

    model: str
    max_tokens: TokenCount | None = None
    max_completion_tokens: TokenCount | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    def output_tokens_wanted(self) -> int | None:
        return self.max_tokens if self.max_tokens is not None else self.max_completion_tokens


class RewrittenFields(Struct, omit_defaults=True):
    """The fields of a chat request that the gateway writes anew for an upstream: the name it has
    for the model, the cap that the hold pays for, and how the reply is to come."""

    model: str
    max_tokens: TokenCount | None = None
    max_completion_tokens: TokenCount | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


# --- reply ----------------------------------------------------------------------------------------


class ReplyFunction(Struct):
    name: str
    arguments: str = ""


class ReplyToolCall(Struct):
    id: str
    function: ReplyFunction
    type: Literal["function"] = "function"
    extra_content: ExtraContent | UnsetType | None = UNSET


class ReplyMessage(Struct):
    role: Literal["assistant"] = "assistant"
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[ReplyToolCall] | UnsetType | None = UNSET
    reasoning_content: str | UnsetType | None = UNSET
    reasoning: str | UnsetType | None = UNSET
    reasoning_details: list[dict[str, Any]] | UnsetType | None = UNSET
    extra_content: ExtraContent | UnsetType | None = UNSET
    annotations: list[dict[str, Any]] | UnsetType | None = UNSET


class TopLogprob(Struct):
    token: str
    logprob: float
    bytes: list[int] | None = None


class TokenLogprob(Struct):
    token: str
    logprob: float
    bytes: list[int] | None = None
    top_logprobs: list[TopLogprob] = []


class Logprobs(Struct):
    content: list[TokenLogprob] | None = None
    refusal: list[TokenLogprob] | None = None


class Choice(Struct):
    index: int
    message: ReplyMessage
    finish_reason: str | None = None
    logprobs: Logprobs | None = None


class ChatCompletion(Struct):
    """A whole reply. `usage` stays as it came until `read_usage`, because what an upstream puts
    there decides money."""

    choices: list[Choice]
    id: str | None = None
    created: Any = None
    model: Any = None
    object: Any = None
    system_fingerprint: str | None = None
    service_tier: str | UnsetType | None = UNSET
    usage: Any = None

"""From a request's bytes to a validated `ChatRequest`, or an `InvalidRequest` that names the field.

The types in `chat.py` say what each field may be; here are the rules that no type can say: which
fields exclude or need one another, and what is refused because it would change the bill and has no
price.

Nearly all requests have fields of ours alone, none of them null and none twice. They are decoded
once and written once, and what was written is also what the upstream gets (`_read_short`: 3 us for
a request of 1 KB, and what grows with the size is msgspec's). All others are read the full way,
which says what is wrong (9 us). A test shows that both ways make the same of a request. Of a long
one, either way reads what is left without its texts (`hollow.py`) or messages (`agents.py`); and
of any, without tools that were read before (`tools.py`).
"""

import re
from collections.abc import Iterator, Mapping, Sequence

import msgspec
from msgspec import UNSET, Struct

from tollway import choices
from tollway.errors import InvalidRequest
from tollway.wire.agents import SHELL_MESSAGES, are_never_longer, read_messages_apart
from tollway.wire.chat import (
    AssistantMessage,
    AudioPart,
    ChatRequest,
    FilePart,
    ForwardedFields,
    ImagePart,
    JsonSchemaFormat,
    NamedFunction,
    NamedToolChoice,
    RewrittenFields,
    ToolMessage,
    UserMessage,
)
from tollway.wire.hollow import hollow
from tollway.wire.strict_json import DEPTH_MAX, Json, check_depth, parse_object, read_number
from tollway.wire.text import JsonSize, json_size, texts_bytes
from tollway.wire.tools import KnownTools, ToolsKept, cut_out_tools

KNOWN_FIELDS = frozenset(ChatRequest.__struct_fields__)
REWRITTEN_FIELDS = frozenset(RewrittenFields.__struct_fields__)
# What the gateway itself decides from, and so always takes, whatever a model supports.
_ALWAYS_TAKEN = REWRITTEN_FIELDS | {"messages", "n"}
OPTIONAL_FIELDS = frozenset(KNOWN_FIELDS - _ALWAYS_TAKEN)

_decode_request = msgspec.json.Decoder(ChatRequest, float_hook=read_number).decode
_encode = msgspec.json.Encoder().encode

_NO_EXTRAS = frozenset[str]()

LONG_BYTES = 16 * 1024
"""A request that is shorter is read faster as it is."""

_NO_PRICE = {
    "audio": "audio output has no price here. Leave out `audio`.",
    "web_search_options": "web search has no price here. Leave out `web_search_options`.",
    "functions": "the `functions` field was replaced by `tools`. Send `tools` instead.",
    "function_call": "the `function_call` field was replaced by `tool_choice`. Send that instead.",
}


class Fields(Mapping[str, object]):
    """What an upstream may be sent of a request, by allow-list and without what the gateway writes
    itself. `pieces` are that as the inside of a JSON object, without its braces: a long one is put
    together but once, with what else is sent. `extras` are the `message_extras`."""

    __slots__ = ("_by_name", "_request", "extras", "pieces")

    def __init__(
        self,
        request: ChatRequest,
        pieces: Sequence[bytes | memoryview],
        extras: frozenset[str] = _NO_EXTRAS,
    ) -> None:
        self._request = request
        self._by_name: dict[str, object] | None = None
        self.pieces = pieces
        self.extras = extras

    @property
    def json(self) -> bytes:
        return b"".join(self.pieces)

    def __getitem__(self, name: str) -> object:
        return self._fields()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields())

    def __len__(self) -> int:
        return len(self._fields())

    def _fields(self) -> dict[str, object]:
        if self._by_name is None:  # seldom asked for: the JSON is enough for most upstreams
            request = self._request
            self._by_name = {
                name: value
                for name in ForwardedFields.__struct_fields__
                if (value := getattr(request, name)) is not None
            }
            self._by_name["messages"] = list(request.messages)  # they may be `LaterMessages`
        return self._by_name


def message_extras(messages: Sequence[object]) -> frozenset[str]:
    """What these have that is not OpenAI's, and so is not for every server: `reasoning_content`,
    `reasoning_details`, and the `extra_content` of texts and calls."""
    extras = _NO_EXTRAS
    for message in messages:
        if type(message) is AssistantMessage:
            if message.reasoning_content is not None:
                extras |= {"reasoning_content"}
            if message.reasoning_details is not None:
                extras |= {"reasoning_details"}
            if message.extra_content is not None:
                extras |= {"extra_content"}
            for call in message.tool_calls or ():
                if call.extra_content is not None:
                    extras |= {"extra_content"}
    return extras


class ImageIn(Struct, frozen=True):
    """An image and where it is, for example `messages[0].content[1]`."""

    path: str
    url: str


class ParsedRequest(Struct):
    """`unknown` has the names of fields that are not OpenAI's. Whether the model takes `images` is
    for others to say. Not frozen, for it is let go of."""

    request: ChatRequest
    fields: Fields
    unknown: tuple[str, ...]
    images: tuple[ImageIn, ...] = ()
    text_bytes: int | None = None
    """Of the messages, where they are all that a tokenizer gets and have nothing but text."""
    messages_json: bytes | None = None
    """Where they were written by themselves, and each result of a tool is one text."""
    tools_size: JsonSize | None = None
    """Where the tools had been read before."""

    @property
    def wants_stream(self) -> bool:
        return self.request.stream is True

    @property
    def wants_usage(self) -> bool:
        options = self.request.stream_options
        return options is not None and options.include_usage is True

    def let_go(self) -> None:
        """Of a stream that has begun: what was asked is in nobody's interest any more, and may be
        large where the stream may be long. That it is a stream is all that is left."""
        self.request = _SOME_STREAM
        self.fields = _NO_FIELDS
        self.images = ()
        self.messages_json = None


_SOME_STREAM = ChatRequest(messages=[], model="", stream=True)
_NO_FIELDS = Fields(_SOME_STREAM, ())


def parse_chat_request(body: bytes) -> ParsedRequest:
    long = _read_long(body) if len(body) >= LONG_BYTES else None
    return long or _read_whole(body)


def _read_whole(body: bytes) -> ParsedRequest:
    # Of a long one only the full way bounds how long its numbers take.
    read = _read_short if len(body) < LONG_BYTES else _read_without_tools
    return read(body) or _read_fully(body)


def _read_shell(shell: bytes) -> ParsedRequest | None:
    try:
        return _read_whole(shell)
    except InvalidRequest:  # what is wrong is told of the whole
        return None


def _read_long(body: bytes) -> ParsedRequest | None:
    """Without its long texts (`hollow.py`), where it has such, or its messages by themselves
    (`agents.py`). None where it may be wrong: what is wrong is told of the whole."""
    if _has_calls(body):  # more and shorter texts than are worth a mark
        return _read_with_messages_apart(body) or _read_without_texts(body)
    return _read_without_texts(body) or _read_with_messages_apart(body)


def _has_calls(body: bytes) -> bool:
    """Or text that says so. What has calls has nulls beside them, or many short texts."""
    return body.find(b'"tool_calls"') >= 0


def _read_without_texts(body: bytes) -> ParsedRequest | None:
    if (cut := hollow(body)) is None or (parsed := _read_shell(cut.shell)) is None:
        return None
    request = parsed.request
    pieces = cut.fill(request, parsed.fields.json)
    if pieces is None:
        return None
    images = tuple(ImageIn(i.path, cut.texts.get(i.url, i.url)) for i in parsed.images)
    conversation = cut.conversation
    size = None if parsed.text_bytes is None or conversation is None else conversation.text_bytes
    fields = Fields(request, pieces, parsed.fields.extras)
    return ParsedRequest(request, fields, parsed.unknown, images, size, None, parsed.tools_size)


_FIRST_FIELD = b'"messages":'


def _read_with_messages_apart(body: bytes) -> ParsedRequest | None:
    if (apart := read_messages_apart(body)) is None:
        return None
    try:
        parsed = _read_whole(apart.shell)
        request = parsed.request
        request.messages = apart.messages
        images = _check_messages(request)
    except InvalidRequest:
        return None
    others = parsed.fields.json[len(_FIRST_FIELD) + len(SHELL_MESSAGES) :]
    pieces = (_FIRST_FIELD, apart.written, others)
    fields = Fields(request, pieces, message_extras(apart.messages))
    return ParsedRequest(
        request, fields, parsed.unknown, images, None, apart.written, parsed.tools_size
    )


def _read_tools(written: bytes) -> KnownTools | None:
    """None where they are wrong, or there are none."""
    try:
        parsed = _read_fully(b'{"model":"","messages":%b,"tools":%b}' % (SHELL_MESSAGES, written))
    except InvalidRequest:
        return None
    tools = parsed.request.tools
    if tools is None:
        return None
    written = _encode(tools)
    return KnownTools(tools, written, json_size(written))


_tools_kept = ToolsKept(_read_tools)


def _read_without_tools(body: bytes) -> ParsedRequest | None:
    """With those that were read before (`tools.py`). None where it has none, or may be wrong."""
    if (cut := cut_out_tools(body)) is None or (known := _tools_kept.find(cut.written)) is None:
        return None
    if (parsed := _read_shell(cut.shell)) is None:
        return None
    request = parsed.request
    request.tools = known.tools
    pieces = [*parsed.fields.pieces, b',"tools":', known.written]
    if cut.choice is not None:
        request.tool_choice = cut.choice
        pieces += (b',"tool_choice":"', cut.choice.encode(), b'"')
    fields = Fields(request, pieces, parsed.fields.extras)
    return ParsedRequest(request, fields, parsed.unknown, parsed.images, tools_size=known.size)


_QUOTES_FEW = 64


def _read_short(body: bytes) -> ParsedRequest | None:
    """None where something is left out when the request is written anew, or may be wrong."""
    quotes = body.count(b'"')
    if quotes > _QUOTES_FEW:
        if (parsed := _read_without_tools(body)) is not None:
            return parsed
        if _has_calls(body):
            return None
    try:
        request = _decode_request(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    others: list[str] = []
    size = _ascii_bytes(request, others)
    if size is None and not _gains_no_quotes(request):
        return None
    written = _encode(request)
    # Each key and each string has two quotes, and escaped ones stay what they are, unless written
    # as an escape that is a quote itself. So the same number of them in what came and in what was
    # written means that nothing was left out: no unknown field, no null, no key that came twice.
    # (`in` for bytes first raises and drops an error, 2,300 instructions; find() does not.)
    if written.count(b'"') != quotes or (body.find(b"\\") >= 0 and body.find(b"\\u0022") >= 0):
        return None
    pieces = (_without_rewritten(written),)
    if size is None:
        _check_fields_together(request)
        fields = Fields(request, pieces, message_extras(request.messages))
        return ParsedRequest(request, fields, (), _check_messages(request))
    if others:
        size += texts_bytes(others)
    return ParsedRequest(request, Fields(request, pieces), (), (), size)


_CHOICES = (None, "auto", "none", "required")


def _gains_no_quotes(request: ChatRequest) -> bool:
    """When it is written anew; and is not nested too deep. Where a type's tag is the only one
    possible, msgspec takes an object without it and writes it."""
    tools, response_format = request.tools, request.response_format
    if (
        request.tool_choice not in ((None,) if tools is None else _CHOICES)
        or request.prediction is not None
        or not are_never_longer(request.messages)
    ):
        return False
    try:
        if tools is not None:
            if not tools or any(tool.type is UNSET for tool in tools):
                return False
            check_depth([tool.function.parameters for tool in tools], DEPTH_MAX - 3)
        if type(response_format) is JsonSchemaFormat:
            check_depth(response_format.json_schema.schema or {}, DEPTH_MAX - 3)
    except InvalidRequest:
        return False
    return True


def _ascii_bytes(request: ChatRequest, others: list[str]) -> int | None:
    """Of those of its messages that are in ASCII; the texts of the `others` are put there. None
    where any rule of this module but the types has a say in the request."""
    if (
        request.tools is not None
        or request.tool_choice is not None
        or request.prediction is not None
        or request.response_format is not None
        or request.top_logprobs is not None
        or request.modalities is not None
        or (request.stream_options is not None and not request.stream)
        or (request.max_completion_tokens is not None and request.max_tokens is not None)
    ):
        return None
    total = 0
    for message in request.messages:
        content = message.content
        if type(content) is not str:
            return None
        # type() and not isinstance(), which asks the class of a msgspec struct: 0.1 us a message.
        if type(message) is ToolMessage or message.name is not None:
            return None
        if type(message) is AssistantMessage and (
            message.tool_calls is not None
            or message.refusal is not None
            or message.reasoning_content is not None
            or message.reasoning_details is not None
            or message.extra_content is not None
        ):
            return None
        if content.isascii():
            total += len(content)
        else:
            others.append(content)
    return total


def _read_fully(body: bytes) -> ParsedRequest:
    document = parse_object(body)
    unknown = _unknown_fields(document)
    _take_whole_numbers(document)
    try:
        request = msgspec.convert(document, ChatRequest)
    except msgspec.ValidationError as error:
        raise explain_invalid(error, document, ChatRequest) from None
    _check_fields_together(request)
    images = _check_messages(request)
    pieces = (_without_rewritten(_encode(request)),)
    fields = Fields(request, pieces, message_extras(request.messages))
    return ParsedRequest(request, fields, unknown, images)


_WHOLE_NUMBERS = ("max_tokens", "max_completion_tokens", "n", "seed", "top_logprobs")


def _take_whole_numbers(document: dict[str, Json]) -> None:
    """64.0 is an integer in JSON Schema, and languages with one type of numbers write it so. Some
    servers refuse that, so it goes on as 64."""
    for name in _WHOLE_NUMBERS:
        value = document.get(name)
        if type(value) is float and value.is_integer():
            document[name] = int(value)


def _without_rewritten(written: bytes) -> bytes:
    """What stands before the fields that the gateway writes anew: those come last, and `model` is
    the first of them. No text has these bytes: its quotes are escaped."""
    return written[1 : written.rindex(b',"model":')]


def _unknown_fields(document: Mapping[str, object]) -> tuple[str, ...]:
    for field, why in _NO_PRICE.items():
        if document.get(field) is not None:
            raise _unsupported(field, f"{field} is not supported: {why}")
    return tuple(n for n in document if n not in KNOWN_FIELDS and document[n] is not None)


def _check_fields_together(request: ChatRequest) -> None:
    if (
        request.max_tokens is not None
        and request.max_completion_tokens is not None
        and request.max_tokens != request.max_completion_tokens
    ):
        raise InvalidRequest(
            f"max_tokens is {request.max_tokens} and max_completion_tokens is "
            f"{request.max_completion_tokens}: they mean the same. Send one of them.",
            param="max_completion_tokens",
        )
    if request.stream_options is not None and not request.stream:
        raise InvalidRequest(
            "stream_options is only for streams: send it together with stream: true.",
            param="stream_options",
        )
    if request.top_logprobs is not None and not request.logprobs:
        raise InvalidRequest(
            "top_logprobs needs logprobs: true in the same request.", param="top_logprobs"
        )
    if request.modalities is not None and request.modalities != ["text"]:
        raise _unsupported("modalities", 'Only modalities ["text"] has a price here.')
    _normalise_tool_choice(request)


def _normalise_tool_choice(request: ChatRequest) -> None:
    """Brings tools and tool_choice into one form: no empty list, and a named function always as
    OpenAI's object."""
    if not request.tools:
        # An explicit tool_choice of "none" or "auto" asks for nothing that a request without tools
        # does not give.
        if request.tools is None and request.tool_choice not in (None, "none", "auto"):
            raise InvalidRequest(
                "tool_choice asks for a tool and there are no tools. Send tools with it.",
                param="tool_choice",
            )
        request.tools = request.tool_choice = None
        return
    for tool in request.tools:
        tool.type = "function"
    names = {tool.function.name for tool in request.tools}
    if len(names) < len(request.tools):
        raise InvalidRequest("Two tools have the same function name.", param="tools")
    choice = request.tool_choice
    if choice is None or choice in ("auto", "none", "required"):
        return
    name = choice.function.name if isinstance(choice, NamedToolChoice) else choice
    if name not in names:
        raise InvalidRequest(
            'tool_choice must be "auto", "none", "required" or one of the tools\' functions: '
            + ", ".join(sorted(names))[:500]
            + ".",
            param="tool_choice",
        )
    request.tool_choice = NamedToolChoice(function=NamedFunction(name=name))


def _check_messages(request: ChatRequest) -> tuple[ImageIn, ...]:
    open_calls: set[str] = set()
    images: list[ImageIn] = []
    for index, message in enumerate(request.messages):
        # type() and not isinstance(), which asks the class of a msgspec struct: 0.1 us each.
        if type(message) is UserMessage:
            if type(message.content) is not str:
                _look_at_parts(message.content, f"messages[{index}].content", images)
        elif type(message) is AssistantMessage:
            if message.content is None and not message.tool_calls and message.refusal is None:
                if message.reasoning_content is None and message.reasoning_details is None:
                    raise _says_nothing(index)
                # It was cut while the model thought. OpenAI has an empty text there, not null.
                message.content = ""
            if not message.tool_calls:
                message.tool_calls = None  # some servers refuse an empty list
            else:
                for call in message.tool_calls:
                    open_calls.add(call.id)
                    if call.type is UNSET:
                        call.type = "function"
        elif type(message) is ToolMessage and message.tool_call_id not in open_calls:
            raise InvalidRequest(
                f"messages[{index}].tool_call_id answers no tool call of an assistant "
                "message before it.",
                param=f"messages[{index}].tool_call_id",
            )
    return tuple(images)


def _says_nothing(index: int) -> InvalidRequest:
    return InvalidRequest(
        f"messages[{index}].content is missing: an assistant message needs content or tool_calls.",
        code="missing_required_parameter",
        param=f"messages[{index}].content",
    )


_UNPRICED_PARTS: Mapping[type[object], str] = {AudioPart: "audio has", FilePart: "files have"}


def _look_at_parts(parts: Sequence[object], path: str, images: list[ImageIn]) -> None:
    for index, part in enumerate(parts):
        if isinstance(part, ImagePart):
            images.append(ImageIn(f"{path}[{index}]", part.image_url.url))
            continue
        kind = _UNPRICED_PARTS.get(type(part))
        if kind is not None:
            raise _unsupported(
                f"{path}[{index}]", f"{path}[{index}]: {kind} no price here. Send text."
            )


def _unsupported(param: str, message: str) -> InvalidRequest:
    return InvalidRequest(message, code="unsupported_parameter", param=param)


_WHERE = re.compile(r"^(?P<what>.*?)(?: - at `(?P<key>key in )?\$(?P<path>.*)`)?$", re.DOTALL)
_MISSING = re.compile(r"missing required field `(\w+)`")
_GOT_NULL = ("got `null`", "got `NoneType`")


def explain_invalid(
    error: msgspec.ValidationError, document: Mapping[str, object], type_: type
) -> InvalidRequest:
    """Turns msgspec's words (`Expected `int`, got `str` - at `$.seed``) into the API's. `type_` is
    what the document should have been."""
    found = _WHERE.match(str(error))
    what, path = (found["what"], found["path"] or "") if found else (str(error), "")
    path = path.removeprefix(".").replace("[...]", "")  # a value of a map: its key is not told
    missing = _MISSING.search(what)
    if missing is not None or what.endswith(_GOT_NULL):  # as if absent
        param = ".".join(filter(None, (path, missing[1] if missing else "")))
        return InvalidRequest(
            f"{param} is missing.", code="missing_required_parameter", param=param
        )
    if refused := choices.of_refusal(what, type_, path, document):
        what = f"{what}. It may be {', '.join(refused[1])}"
    elif "matching regex" in what:  # of functions' names alone
        what = "it may have letters, digits, _ and -, 64 at most"
    what = what[:1].lower() + what[1:]
    value = document.get(path)
    # Numbers are told back; text is not, it may be anything.
    shown = f" is {value}" if type(value) in (int, float) and abs(value) < 1e15 else ""  # pyright: ignore[reportArgumentType]
    return InvalidRequest(f"{path}{shown}: {what}." if path else f"{what}.", param=path or None)

"""Every setting: its key, type, range, default and meaning, and how a file of them is read.

The structs are the tables of the TOML file, key for key, and each field's description is what the
reference in docs/ is made from. Reading resolves what depends on something else (a tier's price, a
secret kept in the environment) and refuses what cannot be served with the key's path and the mend,
so that what `load_settings` returns can be used as it is.

The shortest useful file has one line: `embedded.gguf = "model.gguf"` serves that file as
`local/model`.
"""

import difflib
import ipaddress
import os
import re
import stat
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct

from tollway.errors import ConfigurationError
from tollway.reach import refusal_of_host

EMBEDDED = "embedded"
"""The upstream that is always there without being declared: the model that Tollway runs itself."""
EMBEDDED_MODEL_ID = "tollway/smollm2-135m"

_CREDITS_MAX = 10**15  # JavaScript's clients read whole numbers exactly up to 9 * 10^15
_TOKENS_MAX = 10**9
_IMAGE_BYTES_MAX = 3 * 1024 * 1024  # in base64 as much as a request's body may have
_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,199}$"

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
    "together",
    "anthropic",
    "gemini",
]
"""A test keeps it equal to `tollway.upstreams.dialects.DIALECTS`."""

Rate = Annotated[int, Meta(ge=0, le=_CREDITS_MAX)]
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


# --- the tables of the file -----------------------------------------------------------------------


class Server(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    host: Annotated[
        str,
        Meta(min_length=1, description="The address to listen on; `0.0.0.0` is all of IPv4."),
    ] = "127.0.0.1"
    port: Annotated[
        int, Meta(ge=0, le=65_535, description="The port to listen on; 0 takes any free one.")
    ] = 8080
    data_dir: Annotated[
        Path,
        Meta(
            description="Where the database, the embedded model and the control socket are. "
            "A relative path starts at the configuration file. "
            "Default: `tollway` in the platform's folder for user data."
        ),
    ] = msgspec.field(default_factory=lambda: _default_data_dir())
    database: Annotated[
        StoreAddress,
        Meta(
            description='Where money is kept: `"sqlite"`, the default, is a file in the data_dir, '
            "for one process; `postgresql://user:password@host/name` is for any number. `env:NAME` "
            "or `file:PATH` says where that is written, so that the password is not here."
        ),
    ] = msgspec.field(default_factory=lambda: StoreAddress("sqlite"))
    rate_store: Annotated[
        StoreAddress,
        Meta(
            description='Where rates are counted: `"memory"`, the default, is for one process; '
            "`valkey://:password@host:6379/0` (`valkeys://` with TLS, `redis://` and `rediss://` "
            "for Redis, `unix://PATH`) is for any number. `env:NAME` or `file:PATH` says where that"
            " is written."
        ),
    ] = msgspec.field(default_factory=lambda: StoreAddress("memory"))
    trusted_proxies: Annotated[
        tuple[str, ...],
        Meta(
            description="Addresses or networks (`10.0.0.0/8`) of proxies whose X-Forwarded-For is "
            "believed."
        ),
    ] = ()
    drain_seconds: Annotated[
        float,
        Meta(ge=0, le=3600, description="How long requests in flight may go on after SIGTERM."),
    ] = 120.0
    drain_delay_seconds: Annotated[
        float,
        Meta(
            ge=0,
            le=300,
            description="How long after SIGTERM requests are still accepted, while `/readyz` says "
            "503 and each reply closes its connection: the time that a load balancer needs to send "
            "its requests elsewhere.",
        ),
    ] = 0.0
    store_replies: Annotated[
        bool,
        Meta(
            description="Whether a reply is kept for 24 h to be replayed for its Idempotency-Key."
        ),
    ] = False
    access_log: Annotated[
        str,
        Meta(
            description='A file that gets a line a request, relative to the data_dir; `"-"` is the '
            'standard output, `""` none.'
        ),
    ] = "access.log"


class Limits(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    requests_per_minute: Annotated[
        int,
        Meta(ge=1, le=1_000_000, description="Chat requests of an account in any 60 seconds."),
    ] = 30
    other_requests_per_minute: Annotated[
        int,
        Meta(ge=1, le=1_000_000, description="All other requests of an account in any 60 seconds."),
    ] = 100
    concurrent_requests: Annotated[
        int, Meta(ge=1, le=1_000_000, description="Chat requests of an account at a time.")
    ] = 64
    failed_authentications_per_minute: Annotated[
        int,
        Meta(ge=1, le=1_000_000, description="Failed authentications of an address in a minute."),
    ] = 10
    starting_credits: Annotated[
        int, Meta(ge=0, le=_CREDITS_MAX, description="Credits that a new account is granted.")
    ] = 100_000


class Tier(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A price that models share, `[tiers.NAME]`. There is a tier `budget` unless you declare
    another by that name."""

    prompt_rate: Annotated[Rate, Meta(description="Whole credits per million input tokens.")]
    completion_rate: Annotated[Rate, Meta(description="Whole credits per million output tokens.")]
    cached_prompt_rate: Annotated[
        Rate | None,
        Meta(
            description="For input tokens that the upstream says it had cached. Default: "
            "prompt_rate."
        ),
    ] = None
    reasoning_rate: Annotated[
        Rate | None,
        Meta(
            description="For output tokens that the upstream says were reasoning. Default: "
            "completion_rate."
        ),
    ] = None


class Embedded(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The model that Tollway runs itself, reached as the upstream `embedded`, which needs no
    declaration."""

    gguf: Annotated[
        Path | None,
        Meta(
            description="Your own GGUF file instead of the small model that is fetched. A relative "
            "path starts at the configuration file. Without any `[[models]]` it is served as "
            "`local/` and the file's name."
        ),
    ] = None
    context_length: Annotated[
        Tokens,
        Meta(description="The context of one request, in tokens: its prompt and its output."),
    ] = 4096
    parallel: Annotated[
        int, Meta(ge=1, le=256, description="Requests that run at a time; each takes memory.")
    ] = 4
    threads: Annotated[
        Annotated[int, Meta(ge=1, le=4096)] | None,
        Meta(description="Threads to compute with. Default: one fewer than there are cores."),
    ] = None
    queue_length: Annotated[
        int, Meta(ge=0, le=100_000, description="Requests that may wait; the next one gets a 503.")
    ] = 32
    tool_call_opener: Annotated[
        str | None,
        Meta(
            description="The text that your own model's template begins a tool call with. With it, "
            "`tool_choice` required is forced; without it, only asked for."
        ),
    ] = None


class Upstream(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An OpenAI-compatible server, `[[upstreams]]`."""

    name: Annotated[
        str,
        Meta(pattern=_NAME_PATTERN, description="What the models below and receipts call it."),
    ]
    base_url: Annotated[
        str, Meta(description="Its base URL as an OpenAI client takes it, mostly ending in `/v1`.")
    ]
    api_key: Annotated[
        Secret | None,
        Meta(
            description="Where its key is: `env:NAME` or `file:PATH`; never the key itself. "
            "Default: no key is sent."
        ),
    ] = None
    dialect: Annotated[
        DialectName,
        Meta(
            description="What kind of server it is, so that it is asked as it understands: see "
            "[dialects](dialects.md)."
        ),
    ] = "generic"
    api_version: Annotated[
        str | None,
        Meta(
            description="For Azure's addresses of deployments, `2024-10-21` or later: base_url "
            "then ends in `/openai`, and a model is asked as the deployment of that name."
        ),
    ] = None
    allow_link_local: Annotated[
        bool,
        Meta(
            description="Whether it may be at a link-local address (`169.254.0.0/16`, "
            "`fe80::/10`). A cloud's metadata service is refused even so."
        ),
    ] = False
    connect_seconds: Annotated[Seconds, Meta(description="The longest wait for a connection.")] = (
        3.0
    )
    first_byte_seconds: Annotated[
        Seconds, Meta(description="The longest wait for the first byte of its reply.")
    ] = 120.0
    between_chunks_seconds: Annotated[
        Seconds, Meta(description="The longest silence within its reply.")
    ] = 60.0
    total_seconds: Annotated[Seconds, Meta(description="The longest that a reply may take.")] = (
        900.0
    )
    concurrent_requests: Annotated[
        Annotated[int, Meta(ge=1, le=1_000_000)] | None,
        Meta(description="Requests that it runs at a time; others wait. Default: any number."),
    ] = None
    queue_length: Annotated[
        int,
        Meta(
            ge=0,
            le=100_000,
            description="Requests that may wait for a place at it, where it has a limit.",
        ),
    ] = 32
    queue_seconds: Annotated[
        Seconds,
        Meta(description="The longest wait for a place; then the next priority, or a 503."),
    ] = 10.0
    health_path: Annotated[
        str | None,
        Meta(
            description="What is asked of it to see whether it is well, from its root: `/health`. "
            "A 2xx is well. Default: it is not checked."
        ),
    ] = None
    health_seconds: Annotated[
        Seconds, Meta(description="How often it is checked, where it has a health_path.")
    ] = 5.0
    circuit_failures: Annotated[
        int,
        Meta(
            ge=0,
            le=1000,
            description="Failures in a row after which it is not asked for a while; 0: it always "
            "is.",
        ),
    ] = 5


class Serving(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An upstream that serves a model, an element of `models.upstreams`."""

    name: Annotated[str, Meta(description="The upstream's name; `embedded` needs no declaration.")]
    model: Annotated[
        Annotated[str, Meta(min_length=1)] | None,
        Meta(description="What it calls the model. Default: as the model's id."),
    ] = None
    weight: Annotated[
        int,
        Meta(
            ge=1,
            le=1_000_000,
            description="How many requests at a time it takes, relative to the others of its "
            "priority.",
        ),
    ] = 1
    priority: Annotated[
        int,
        Meta(
            ge=0,
            le=1000,
            description="Those of 0 are asked first; those of 1 only while none of 0 can serve, "
            "and so on.",
        ),
    ] = 0
    connect_seconds: Annotated[
        Seconds | None, Meta(description="For this model, in place of the upstream's.")
    ] = None
    first_byte_seconds: Annotated[
        Seconds | None, Meta(description="For this model, in place of the upstream's.")
    ] = None
    between_chunks_seconds: Annotated[
        Seconds | None, Meta(description="For this model, in place of the upstream's.")
    ] = None
    total_seconds: Annotated[
        Seconds | None, Meta(description="For this model, in place of the upstream's.")
    ] = None


Stop = Annotated[str, Meta(min_length=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]


class Defaults(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Values of a request's parameters where the client names none, `defaults = { ... }` of a
    model. What would add to the prompt cannot have one."""

    temperature: Annotated[
        Annotated[float, Meta(ge=0, le=2)] | None, Meta(description="As in a request.")
    ] = None
    top_p: Annotated[
        Annotated[float, Meta(ge=0, le=1)] | None, Meta(description="As in a request.")
    ] = None
    stop: Annotated[
        Stop | Annotated[tuple[Stop, ...], Meta(min_length=1, max_length=4)] | None,
        Meta(description="As in a request."),
    ] = None
    seed: Annotated[int | None, Meta(description="As in a request.")] = None
    presence_penalty: Annotated[Penalty | None, Meta(description="As in a request.")] = None
    frequency_penalty: Annotated[Penalty | None, Meta(description="As in a request.")] = None
    parallel_tool_calls: Annotated[
        bool | None, Meta(description="As in a request; only where it has tools.")
    ] = None
    reasoning_effort: Annotated[
        Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None,
        Meta(description="As in a request."),
    ] = None
    verbosity: Annotated[
        Literal["low", "medium", "high"] | None, Meta(description="As in a request.")
    ] = None
    service_tier: Annotated[
        Literal["auto", "default", "flex", "scale", "priority", "fast"] | None,
        Meta(description="As in a request."),
    ] = None


class ModelTable(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A model on offer as the file has it, `[[models]]`."""

    id: Annotated[
        str, Meta(pattern=_NAME_PATTERN, description="What clients send as `model`: `owner/name`.")
    ]
    tier: Annotated[
        str | None, Meta(description="Its price: the name of a tier. Else both rates below.")
    ] = None
    prompt_rate: Annotated[
        Rate | None, Meta(description="Its own price: whole credits per million input tokens.")
    ] = None
    completion_rate: Annotated[
        Rate | None, Meta(description="Its own price: whole credits per million output tokens.")
    ] = None
    cached_prompt_rate: Annotated[
        Rate | None, Meta(description="As a tier's, beside its own price. Default: prompt_rate.")
    ] = None
    reasoning_rate: Annotated[
        Rate | None,
        Meta(description="As a tier's, beside its own price. Default: completion_rate."),
    ] = None
    context_length: Annotated[
        Tokens | None,
        Meta(
            description="Prompt and output together, in tokens. The embedded model knows its own."
        ),
    ] = None
    max_output_tokens: Annotated[
        Tokens | None,
        Meta(description="The longest output, in tokens. Default: context_length."),
    ] = None
    default_max_tokens: Annotated[
        Tokens | None,
        Meta(
            description="The longest output where a client names none. Default: max_output_tokens."
        ),
    ] = None
    supported_parameters: Annotated[
        tuple[Parameter, ...] | None,
        Meta(
            description="The optional fields of a request that are passed on; others are ignored, "
            "or refused for a strict token. Default: all."
        ),
    ] = None
    denied_parameters: Annotated[
        tuple[Parameter, ...],
        Meta(description="Optional fields that a request is refused for, with a 400."),
    ] = ()
    defaults: Annotated[
        Defaults | None,
        Meta(description="Values of parameters where the client names none. Default: none."),
    ] = None
    vision: Annotated[
        bool,
        Meta(
            description="Whether it takes images, as data URLs: `data:image/png;base64,...`. Their "
            "addresses are never fetched, and refused."
        ),
    ] = False
    image_tokens: Annotated[
        Tokens | None,
        Meta(
            description="The most input tokens that one image is: what is held for it, and what it "
            "costs where the upstream reports no usage. Needed with `vision`."
        ),
    ] = None
    max_image_bytes: Annotated[
        int,
        Meta(ge=1, le=_IMAGE_BYTES_MAX, description="The largest image, in bytes of the image."),
    ] = _IMAGE_BYTES_MAX
    confidential: Annotated[bool, Meta(description="Whether its replies must never be stored.")] = (
        False
    )
    upstreams: Annotated[
        tuple[Serving, ...], Meta(description="The upstreams that serve it, at least one.")
    ] = msgspec.field(default_factory=tuple)
    sticky: Annotated[
        Literal["header", "prefix"] | None,
        Meta(
            description="Keeps requests that belong together on one upstream, for its prefix "
            'cache: `"header"` those with the same X-Session-Id, `"prefix"` also those whose '
            "conversation begins alike. Default: any upstream will do."
        ),
    ] = None


SECTIONS: Mapping[str, type[Struct]] = {
    "server": Server,
    "limits": Limits,
    "tiers": Tier,
    "embedded": Embedded,
    "upstreams": Upstream,
    "models": ModelTable,
    "models.defaults": Defaults,
    "models.upstreams": Serving,
}


# --- what is used ---------------------------------------------------------------------------------


class ServedBy(Struct, frozen=True):
    upstream: str
    model: str
    weight: int
    priority: int = 0
    connect_seconds: float | None = None
    first_byte_seconds: float | None = None
    between_chunks_seconds: float | None = None
    total_seconds: float | None = None


class Model(Struct, frozen=True):
    """A model on offer, nothing left open. `tier` is `custom` where it has its own rates;
    `supported_parameters` None means all."""

    id: str
    tier: str
    prompt_rate: int
    completion_rate: int
    context_length: int
    max_output_tokens: int
    default_max_tokens: int
    supported_parameters: frozenset[str] | None
    confidential: bool
    upstreams: tuple[ServedBy, ...]
    cached_prompt_rate: int | None = None
    reasoning_rate: int | None = None
    sticky: Literal["header", "prefix"] | None = None
    denied_parameters: frozenset[str] = frozenset()
    defaults: Mapping[str, object] = {}
    image_tokens: int | None = None
    max_image_bytes: int = _IMAGE_BYTES_MAX


class Settings(Struct, frozen=True):
    """`key_files` are those that an `api_key` was read from; `warnings` say what may be meant and
    had better not be."""

    server: Server
    limits: Limits
    tiers: Mapping[str, Tier]
    embedded: Embedded
    upstreams: tuple[Upstream, ...]
    models: tuple[Model, ...]
    key_files: tuple[Path, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def serves_embedded(self) -> bool:
        """Whether the embedded model is needed at all."""
        return any(by.upstream == EMBEDDED for model in self.models for by in model.upstreams)


def load_settings(
    path: Path | None,
    *,
    data_dir: Path | None = None,
    host: str | None = None,
    port: int | None = None,
    embedded: Embedded | None = None,
    for_serving: bool = True,
) -> Settings:
    """What the file says, or the defaults without one; the other arguments go before the file's.

    `for_serving` False leaves every `api_key` None and does not look for the model's file: an
    operator's command must work in a shell that lacks the keys. Raises `ConfigurationError`.
    """
    document = {} if path is None else _read(path)
    folder = Path.cwd() if path is None else path.resolve().parent
    settings = _Reader(folder, for_serving, embedded).settings(document)
    overrides: dict[str, Any] = {
        "data_dir": None if data_dir is None else data_dir.expanduser().absolute(),
        "host": host,
        "port": port,
    }
    given = {key: value for key, value in overrides.items() if value is not None}
    return msgspec.structs.replace(
        settings, server=msgspec.structs.replace(settings.server, **given)
    )


def _default_data_dir() -> Path:
    # Not at the top: `tollway --help` has no use for it.
    import platformdirs

    return Path(platformdirs.user_data_dir("tollway", appauthor=False))


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(
            f"The configuration {path} cannot be read: {error.strerror}. Check --config."
        ) from None
    except UnicodeDecodeError:
        raise ConfigurationError(
            f"The configuration {path} is not UTF-8. Save it as that."
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"The configuration {path} is not TOML: {error}.") from None


# --- from tables to settings ----------------------------------------------------------------------

T = TypeVar("T")


class _Reader:
    def __init__(self, folder: Path, for_serving: bool, embedded: Embedded | None) -> None:
        self._folder = folder
        self._embedded = embedded
        self._for_serving = for_serving
        self._key_files: list[Path] = []

    def settings(self, document: Mapping[str, Any]) -> Settings:
        sections = [name for name in SECTIONS if "." not in name]
        for key in document:
            if key not in sections:
                raise _unknown(key, key, sections)
        server = self._convert(document.get("server", {}), Server, "server")
        _check_server(server)
        embedded = self._embedded
        if embedded is None:
            embedded = self._convert(document.get("embedded", {}), Embedded, "embedded")
        if self._for_serving and embedded.gguf is not None and not embedded.gguf.is_file():
            raise _wrong("embedded.gguf", f"there is no file {embedded.gguf}. Correct the path")
        upstreams = self._elements(document, "upstreams", Upstream)
        _check_upstreams(upstreams)
        if not self._for_serving:
            upstreams = [msgspec.structs.replace(one, api_key=None) for one in upstreams]
        tiers = self._tiers(document.get("tiers", {}))
        tables = self._elements(document, "models", ModelTable)
        _check_unique("models", "id", [table.id for table in tables])
        names = {EMBEDDED, *(upstream.name for upstream in upstreams)}
        return Settings(
            server=server,
            limits=self._convert(document.get("limits", {}), Limits, "limits"),
            tiers=tiers,
            embedded=embedded,
            upstreams=tuple(upstreams),
            models=tuple(
                _model(f"models[{index}]", table, tiers, names, embedded)
                for index, table in enumerate(tables or [_embedded_model(embedded)])
            ),
            key_files=tuple(dict.fromkeys(self._key_files)),
            warnings=tuple(
                f"The key in {path} can be read by every user of this machine. "
                f"Take that away: chmod 600 {path}"
                for path in dict.fromkeys(self._key_files)
                if _is_open_to_all(path)
            ),
        )

    def _tiers(self, value: object) -> dict[str, Tier]:
        if not isinstance(value, dict):
            raise _wrong("tiers", "write each as a table, [tiers.NAME]")
        declared: dict[str, object] = value  # pyright: ignore[reportUnknownVariableType]
        tiers = {"budget": Tier(prompt_rate=700, completion_rate=4000)}
        for name, table in declared.items():
            tiers[name] = self._convert(table, Tier, f"tiers.{name}")
        return tiers

    def _elements(self, document: Mapping[str, Any], key: str, type_: type[T]) -> list[T]:
        value: object = document.get(key, [])
        if not isinstance(value, list):
            raise _wrong(key, f"write each as a table of its own, [[{key}]]")
        elements: list[object] = value  # pyright: ignore[reportUnknownVariableType]
        return [
            self._convert(element, type_, f"{key}[{index}]")
            for index, element in enumerate(elements)
        ]

    def _convert(self, value: object, type_: type[T], path: str) -> T:
        try:
            return msgspec.convert(value, type_, dec_hook=self._decode)
        except msgspec.ValidationError as error:
            raise _explained(str(error), type_, path) from None

    def _decode(self, type_: type, value: object) -> object:
        if not isinstance(value, str):
            raise ValueError(f"Expected `str`, got `{_type_name(value)}`")
        if type_ is Path:
            return self._path(value)
        if type_ is StoreAddress:
            return self._store_address(value)
        assert type_ is Secret
        return self._secret(value)

    def _path(self, value: str) -> Path:
        return self._folder / Path(value).expanduser()

    def _store_address(self, value: str) -> StoreAddress:
        if value.startswith("file:"):
            self._key_files.append(self._path(value.removeprefix("file:")))
        return resolve_address(value, self._folder)

    def _secret(self, reference: str) -> Secret:
        scheme, _, where = reference.partition(":")
        if scheme not in ("env", "file") or not where:
            # The value may be the secret itself, so it is not told back.
            raise ValueError(
                "Secrets are not written here. Give the name of an environment variable as "
                "env:NAME, or a file as file:PATH"
            )
        if not self._for_serving:
            return Secret("")  # not kept: `settings` takes them all out
        secret = _from_environment(where) if scheme == "env" else self._from_file(where)
        if not (secret.isascii() and secret.isprintable()):
            raise ValueError(
                f"What {reference} holds has characters that no header may have: line breaks or "
                "other than ASCII. Keep only the key there"
            )
        return Secret(secret)

    def _from_file(self, where: str) -> str:
        path = self._path(where)
        secret = _from_file(path)
        self._key_files.append(path)
        return secret


def resolve_address(value: str, folder: Path) -> StoreAddress:
    """A store's address, or what `env:NAME` or `file:PATH` refers to. Raises `ValueError`, which
    never says the address: it may have a password."""
    address = _resolved(value, folder) if value.startswith(("env:", "file:")) else value
    try:
        urlsplit(address).port  # noqa: B018 (read for what it raises)
    except ValueError:
        raise ValueError(
            "This is no URL. Write it like postgresql://user@host/name or valkey://host:6379/0"
        ) from None
    return StoreAddress(address)


def _resolved(reference: str, folder: Path) -> str:
    scheme, _, where = reference.partition(":")
    if scheme == "env":
        return _from_environment(where)
    return _from_file(folder / Path(where).expanduser())


def _from_environment(name: str) -> str:
    if secret := os.environ.get(name, "").strip():
        return secret
    raise ValueError(f"The environment variable {name} is not set or empty. Set it before starting")


def _from_file(path: Path) -> str:
    try:
        secret = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ValueError(f"The file {path} cannot be read: {why}. Put the key there") from None
    if not secret:
        raise ValueError(f"The file {path} is empty. Put the key there")
    return secret


def _is_open_to_all(path: Path) -> bool:
    try:
        return bool(path.stat().st_mode & stat.S_IROTH)
    except OSError:  # it was there a moment ago
        return False


def _check_server(server: Server) -> None:
    address = server.database
    if address != StoreAddress("sqlite") and address.scheme not in ("postgresql", "postgres"):
        raise _wrong(
            "server.database",
            'it is neither "sqlite" nor begins with postgresql://. Write it like '
            "postgresql://user:password@host/name, or refer to it with env:NAME or file:PATH",
        )
    if server.rate_store != StoreAddress("memory") and not _is_valkey(server.rate_store):
        raise _wrong(
            "server.rate_store",
            'it is neither "memory" nor the address of a Valkey or Redis. Write it like '
            "valkey://host:6379/0, or refer to it with env:NAME or file:PATH",
        )
    for index, proxy in enumerate(server.trusted_proxies):
        try:
            ipaddress.ip_network(proxy)
        except ValueError as error:
            raise _wrong(
                f"server.trusted_proxies[{index}]",
                f"{error}. Give an address such as 10.0.0.7 or a network such as 10.0.0.0/8",
            ) from None


def _is_valkey(address: StoreAddress) -> bool:
    parts = urlsplit(address.reveal())
    if address.scheme == "unix":
        return bool(parts.path) and not parts.hostname
    number = parts.path.removeprefix("/")
    known = address.scheme in ("valkey", "valkeys", "redis", "rediss")
    return known and bool(parts.hostname) and (not number or number.isdecimal())


def _check_upstreams(upstreams: list[Upstream]) -> None:
    _check_unique("upstreams", "name", [upstream.name for upstream in upstreams])
    for index, upstream in enumerate(upstreams):
        if upstream.name == EMBEDDED:
            raise _wrong(
                f"upstreams[{index}].name",
                "`embedded` is the model that Tollway runs itself, and needs no declaration. "
                "Choose another name, or set what you want to change in [embedded]",
            )
        path = f"upstreams[{index}].base_url"
        _check_base_url(path, upstream.base_url)
        host = urlsplit(upstream.base_url).hostname or ""
        why = refusal_of_host(host, allow_link_local=upstream.allow_link_local)
        if why is not None:
            raise _wrong(path, f"no upstream may be at {host}: {why}. Give its own address")
        _check_api_version(f"upstreams[{index}].api_version", upstream)
        if upstream.health_path is not None and not _is_path(upstream.health_path):
            raise _wrong(
                f"upstreams[{index}].health_path",
                "it must begin with a slash and have no spaces, as /health does",
            )


def _is_path(text: str) -> bool:
    return text.startswith("/") and text.isascii() and text.isprintable() and " " not in text


def _check_api_version(path: str, upstream: Upstream) -> None:
    version = upstream.api_version
    if version is None:
        return
    if upstream.dialect != "azure":
        raise _wrong(path, 'only Azure has one. Set dialect = "azure" with it, or leave it out')
    if re.fullmatch(r"[A-Za-z0-9.-]{1,64}", version) is None:
        raise _wrong(path, "it is a date. Write it like 2024-10-21, or 2025-04-01-preview")


def _check_base_url(path: str, base_url: str) -> None:
    try:
        parts = urlsplit(base_url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise _wrong(path, "this is no URL. Write it like https://gpu-1.example/v1") from None
    if not usable or not (base_url.isascii() and base_url.isprintable() and " " not in base_url):
        raise _wrong(path, "it must start with http:// or https:// and name a host")
    if parts.query or parts.fragment or parts.username or parts.password:
        raise _wrong(
            path, "it must have no user, password, query or fragment. A key goes to api_key"
        )


def _check_unique(section: str, key: str, values: list[str]) -> None:
    first: dict[str, int] = {}
    for index, value in enumerate(values):
        if value in first:
            raise _wrong(
                f"{section}[{index}].{key}",
                f"{value!r} is taken by {section}[{first[value]}]. Each needs its own",
            )
        first[value] = index


def _embedded_model(embedded: Embedded) -> ModelTable:
    """What is served where the file names no model."""
    own = embedded.gguf
    id_ = EMBEDDED_MODEL_ID
    if own is not None:
        id_ = "local/" + re.sub(r"[^A-Za-z0-9._+-]+", "-", own.name.removesuffix(".gguf"))[:180]
    return ModelTable(id=id_, tier="budget", upstreams=(Serving(name=EMBEDDED),))


def _model(
    path: str,
    table: ModelTable,
    tiers: Mapping[str, Tier],
    upstream_names: Iterable[str],
    embedded: Embedded,
) -> Model:
    tier, price = _price(path, table, tiers)
    served_by = _served_by(path, table, upstream_names)
    context_length = table.context_length
    if any(by.upstream == EMBEDDED for by in served_by):
        context_length = _embedded_context(path, context_length, embedded)
    if context_length is None:
        raise _wrong(
            f"{path}.context_length", "it is missing. Say how many tokens the model's context holds"
        )
    max_output_tokens = table.max_output_tokens or context_length
    if max_output_tokens > context_length:
        raise _wrong(
            f"{path}.max_output_tokens",
            f"{max_output_tokens} is more than the context of {context_length} holds. Lower it",
        )
    default_max_tokens = table.default_max_tokens or max_output_tokens
    if default_max_tokens > max_output_tokens:
        raise _wrong(
            f"{path}.default_max_tokens",
            f"{default_max_tokens} is above max_output_tokens, {max_output_tokens}. Lower it",
        )
    supported = table.supported_parameters
    _check_parameters(path, table)
    _check_vision(path, table)
    return Model(
        id=table.id,
        tier=tier,
        prompt_rate=price.prompt_rate,
        completion_rate=price.completion_rate,
        context_length=context_length,
        max_output_tokens=max_output_tokens,
        default_max_tokens=default_max_tokens,
        supported_parameters=None if supported is None else frozenset(supported),
        confidential=table.confidential,
        upstreams=served_by,
        cached_prompt_rate=price.cached_prompt_rate,
        reasoning_rate=price.reasoning_rate,
        sticky=table.sticky,
        denied_parameters=frozenset(table.denied_parameters),
        defaults=_defaults(table),
        image_tokens=table.image_tokens,
        max_image_bytes=table.max_image_bytes,
    )


def _check_parameters(path: str, table: ModelTable) -> None:
    supported, denied = table.supported_parameters, table.denied_parameters
    for name in denied:
        if supported is not None and name in supported:
            raise _wrong(
                f"{path}.denied_parameters",
                f"{name} is among the supported_parameters too. Keep it in one of them",
            )
    for name in _defaults(table):
        if name in denied or (supported is not None and name not in supported):
            raise _wrong(
                f"{path}.defaults.{name}",
                "the model does not take it. Leave it out, or allow it to requests too",
            )


def _defaults(table: ModelTable) -> dict[str, object]:
    if table.defaults is None:
        return {}
    values = msgspec.structs.asdict(table.defaults)
    return {name: value for name, value in values.items() if value is not None}


def _check_vision(path: str, table: ModelTable) -> None:
    if table.vision and table.image_tokens is None:
        raise _wrong(
            f"{path}.image_tokens",
            "it is missing. Say how many input tokens an image is at most: it has no price without",
        )
    if table.image_tokens is not None and not table.vision:
        raise _wrong(f"{path}.image_tokens", "the model takes no images. Set vision = true with it")
    if table.vision and any(serving.name == EMBEDDED for serving in table.upstreams):
        raise _wrong(
            f"{path}.vision", "the embedded model reads no images. Name other upstreams alone"
        )


def _price(path: str, table: ModelTable, tiers: Mapping[str, Tier]) -> tuple[str, Tier]:
    own = (table.prompt_rate, table.completion_rate)
    parts = {
        "cached_prompt_rate": table.cached_prompt_rate,
        "reasoning_rate": table.reasoning_rate,
    }
    if table.tier is not None:
        if own != (None, None) or any(rate is not None for rate in parts.values()):
            raise _wrong(
                f"{path}.tier", "the model has a tier and rates of its own. Keep one of them"
            )
        if table.tier not in tiers:
            raise _wrong(
                f"{path}.tier",
                f"there is no tier {table.tier!r}. Declare [tiers.{table.tier}], or use one of "
                + ", ".join(sorted(tiers)),
            )
        return table.tier, tiers[table.tier]
    prompt_rate, completion_rate = own
    if prompt_rate is None and completion_rate is None:
        raise _wrong(
            path,
            f"the model {table.id} has no price. Give it a tier, or prompt_rate and "
            "completion_rate",
        )
    if prompt_rate is None:
        raise _wrong(f"{path}.prompt_rate", "it is missing. A price is both rates")
    if completion_rate is None:
        raise _wrong(f"{path}.completion_rate", "it is missing. A price is both rates")
    return "custom", Tier(prompt_rate=prompt_rate, completion_rate=completion_rate, **parts)


def _served_by(path: str, table: ModelTable, upstream_names: Iterable[str]) -> tuple[ServedBy, ...]:
    if not table.upstreams:
        raise _wrong(
            f"{path}.upstreams",
            f'the model {table.id} has none. Name one: upstreams = [{{ name = "..." }}]',
        )
    for index, serving in enumerate(table.upstreams):
        if serving.name not in upstream_names:
            raise _wrong(
                f"{path}.upstreams[{index}].name",
                f"there is no upstream {serving.name!r}. Declare it in [[upstreams]], or use one "
                "of " + ", ".join(sorted(upstream_names)),
            )
    served_by = tuple(
        ServedBy(
            serving.name,
            serving.model or table.id,
            serving.weight,
            serving.priority,
            serving.connect_seconds,
            serving.first_byte_seconds,
            serving.between_chunks_seconds,
            serving.total_seconds,
        )
        for serving in table.upstreams
    )
    _check_unique(
        f"{path}.upstreams", "name", [f"{by.upstream} for {by.model}" for by in served_by]
    )
    return served_by


def _embedded_context(path: str, asked: int | None, embedded: Embedded) -> int:
    if asked is not None and asked > embedded.context_length:
        raise _wrong(
            f"{path}.context_length",
            f"{asked} is more than the embedded model is run with, {embedded.context_length}. "
            "Lower it, or raise embedded.context_length",
        )
    return asked or embedded.context_length


# --- what is wrong, and the mend ------------------------------------------------------------------


def _wrong(path: str, why: str) -> ConfigurationError:
    return ConfigurationError(f"{path}: {why}.")


def _unknown(path: str, key: str, known: Iterable[str]) -> ConfigurationError:
    names = sorted(known)
    close = difflib.get_close_matches(key, names, n=1)
    mend = f"Did you mean `{close[0]}`?" if close else f"There are {', '.join(names)}."
    return ConfigurationError(f"{path}: there is no such setting. {mend}")


_WHERE = re.compile(r"^(?P<what>.*?)(?: - at `\$(?P<path>.*)`)?$", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<key>.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<key>.*)`")
_TOML_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "str": "text in quotes",
    "bool": "true or false",
    "array": "a list in brackets",
    "object": "a table",
}


def _explained(message: str, type_: type, path: str) -> ConfigurationError:
    """Turns msgspec's words (``Expected `int`, got `str` - at `$.port` ``) into the operator's."""
    found = _WHERE.match(message)
    assert found is not None
    what, path = found["what"], path + (found["path"] or "")
    if unknown := _UNKNOWN.fullmatch(what):
        table = _table_at(path, type_)
        assert issubclass(table, Struct)
        return _unknown(f"{path}.{unknown['key']}", unknown["key"], table.__struct_fields__)
    if missing := _MISSING.fullmatch(what):
        return _wrong(f"{path}.{missing['key']}", "it is missing. Add it")
    if "matching regex" in what:
        return _wrong(
            path,
            "it may have letters, digits and . _ : / @ + -, 200 at most, and begins with a letter "
            "or a digit",
        )
    what = re.sub(r"`([a-z| ]+)`", lambda name: _in_toml(name[1]), what)
    return _wrong(path, what[:1].lower() + what[1:])


def _table_at(path: str, type_: type) -> type:
    """Only models have tables within: their upstreams and their defaults."""
    if type_ is ModelTable and ".upstreams[" in path:
        return Serving
    return Defaults if type_ is ModelTable and path.endswith(".defaults") else type_


def _in_toml(types: str) -> str:
    names = [name for name in types.split(" | ") if name != "null"]
    return " or ".join(_TOML_TYPES.get(name, name) for name in names)


def _type_name(value: object) -> str:
    if isinstance(value, list):
        return "array"
    return "object" if isinstance(value, dict) else type(value).__name__

"""The tables of the file, key for key. Each field's description is what the reference in docs/ is
made from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from tollway.settings.values import (
    CREDITS_MAX,
    IMAGE_BYTES_MAX,
    NAME_PATTERN,
    DialectName,
    Parameter,
    Rate,
    Seconds,
    Secret,
    StoreAddress,
    Tokens,
)


def _default_data_dir() -> Path:
    # Not at the top: `tollway --help` has no use for it.
    import platformdirs

    return Path(platformdirs.user_data_dir("tollway", appauthor=False))


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
    ] = msgspec.field(default_factory=_default_data_dir)
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
        int, Meta(ge=0, le=CREDITS_MAX, description="Credits that a new account is granted.")
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
        Meta(pattern=NAME_PATTERN, description="What the models below and receipts call it."),
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
            "is. A 500, 400 or 404 is none of them: see [several upstreams]"
            "(../how-to/several-upstreams.md#what-happens-when-one-fails).",
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
        str,
        Meta(
            pattern=NAME_PATTERN,
            description="What clients send as `model`, for example `owner/name`: letters, digits "
            "and `. _ : / @ + -`.",
        ),
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
            "or refused for a strict token. Default: all but tiers of service that cost more, or "
            "what the embedded model heeds."
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
        Meta(ge=1, le=IMAGE_BYTES_MAX, description="The largest image, in bytes of the image."),
    ] = IMAGE_BYTES_MAX
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

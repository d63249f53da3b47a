"""What is read from the file: complete, checked, and used as it is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from msgspec import Struct

from tollway.settings.tables import Embedded, Limits, Server, Upstream
from tollway.settings.values import EMBEDDED, IMAGE_BYTES_MAX


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
    max_image_bytes: int = IMAGE_BYTES_MAX


class Settings(Struct, frozen=True):
    """`key_files` are those that an `api_key` was read from; `warnings` say what may be meant and
    had better not be."""

    server: Server
    limits: Limits
    embedded: Embedded
    upstreams: tuple[Upstream, ...]
    models: tuple[Model, ...]
    key_files: tuple[Path, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def serves_embedded(self) -> bool:
        """Whether the embedded model is needed at all."""
        return any(by.upstream == EMBEDDED for model in self.models for by in model.upstreams)

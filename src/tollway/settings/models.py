"""From a model's table to the `Model` on offer: its price, its limits and who serves it."""

import re
from collections.abc import Iterable, Mapping

import msgspec

from tollway.settings.checks import check_unique
from tollway.settings.mistakes import wrong
from tollway.settings.settings import Model, ServedBy
from tollway.settings.tables import Embedded, ModelTable, Serving, Tier
from tollway.settings.values import EMBEDDED, EMBEDDED_PARAMETERS

EMBEDDED_MODEL_ID = "tollway/smollm2-135m"


def embedded_model(embedded: Embedded) -> ModelTable:
    """What is served where the file names no model."""
    own = embedded.gguf
    id_ = EMBEDDED_MODEL_ID
    if own is not None:
        id_ = "local/" + re.sub(r"[^A-Za-z0-9._+-]+", "-", own.name.removesuffix(".gguf"))[:180]
    return ModelTable(id=id_, tier="budget", upstreams=(Serving(name=EMBEDDED),))


def model(
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
        raise wrong(
            f"{path}.context_length", "it is missing. Say how many tokens the model's context holds"
        )
    max_output_tokens = table.max_output_tokens or context_length
    if max_output_tokens > context_length:
        raise wrong(
            f"{path}.max_output_tokens",
            f"{max_output_tokens} is more than the context of {context_length} holds. Lower it",
        )
    default_max_tokens = table.default_max_tokens or max_output_tokens
    if default_max_tokens > max_output_tokens:
        raise wrong(
            f"{path}.default_max_tokens",
            f"{default_max_tokens} is above max_output_tokens, {max_output_tokens}. Lower it",
        )
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
        supported_parameters=_supported(table),
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


def _price(path: str, table: ModelTable, tiers: Mapping[str, Tier]) -> tuple[str, Tier]:
    own = (table.prompt_rate, table.completion_rate)
    parts = {
        "cached_prompt_rate": table.cached_prompt_rate,
        "reasoning_rate": table.reasoning_rate,
    }
    if table.tier is not None:
        if own != (None, None) or any(rate is not None for rate in parts.values()):
            raise wrong(
                f"{path}.tier", "the model has a tier and rates of its own. Keep one of them"
            )
        if table.tier not in tiers:
            raise wrong(
                f"{path}.tier",
                f"there is no tier {table.tier!r}. Declare [tiers.{table.tier}], or use one of "
                + ", ".join(sorted(tiers)),
            )
        return table.tier, tiers[table.tier]
    prompt_rate, completion_rate = own
    if prompt_rate is None and completion_rate is None:
        raise wrong(
            path,
            f"the model {table.id} has no price. Give it a tier, or prompt_rate and "
            "completion_rate",
        )
    if prompt_rate is None:
        raise wrong(f"{path}.prompt_rate", "it is missing. A price is both rates")
    if completion_rate is None:
        raise wrong(f"{path}.completion_rate", "it is missing. A price is both rates")
    return "custom", Tier(prompt_rate=prompt_rate, completion_rate=completion_rate, **parts)


def _served_by(path: str, table: ModelTable, upstream_names: Iterable[str]) -> tuple[ServedBy, ...]:
    if not table.upstreams:
        raise wrong(
            f"{path}.upstreams",
            f'the model {table.id} has none. Name one: upstreams = [{{ name = "..." }}]',
        )
    for index, serving in enumerate(table.upstreams):
        if serving.name not in upstream_names:
            raise wrong(
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
    check_unique(f"{path}.upstreams", "name", [f"{by.upstream} for {by.model}" for by in served_by])
    return served_by


def _embedded_context(path: str, asked: int | None, embedded: Embedded) -> int:
    if asked is not None and asked > embedded.context_length:
        raise wrong(
            f"{path}.context_length",
            f"{asked} is more than the embedded model is run with, {embedded.context_length}. "
            "Lower it, or raise embedded.context_length",
        )
    return asked or embedded.context_length


def _supported(table: ModelTable) -> frozenset[str] | None:
    if table.supported_parameters is not None:
        return frozenset(table.supported_parameters)
    is_embedded = all(serving.name == EMBEDDED for serving in table.upstreams)
    return EMBEDDED_PARAMETERS if is_embedded else None


def _check_parameters(path: str, table: ModelTable) -> None:
    supported, denied = _supported(table), table.denied_parameters
    for name in denied:
        if name in (table.supported_parameters or ()):
            raise wrong(
                f"{path}.denied_parameters",
                f"{name} is among the supported_parameters too. Keep it in one of them",
            )
    for name in _defaults(table):
        if name in denied or (supported is not None and name not in supported):
            raise wrong(
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
        raise wrong(
            f"{path}.image_tokens",
            "it is missing. Say how many input tokens an image is at most: it has no price without",
        )
    if table.image_tokens is not None and not table.vision:
        raise wrong(f"{path}.image_tokens", "the model takes no images. Set vision = true with it")
    if table.vision and any(serving.name == EMBEDDED for serving in table.upstreams):
        raise wrong(
            f"{path}.vision", "the embedded model reads no images. Name other upstreams alone"
        )

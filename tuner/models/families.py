"""The families of networks by name, and the parameters of a configuration."""

from dataclasses import dataclass
from typing import Annotated, Any

from tuner.config import Count, ModelConfig
from tuner.errors import UsageError
from tuner.models.params import (
    CnnParams,
    ConvNeXtParams,
    CustomParams,
    PretrainedParams,
    ResNetParams,
    SpeedNetParams,
    ViTParams,
    WideResNetParams,
)
from tuner.schema import Opaque, did_you_mean, from_json, parse, schema_of

ImageShape = tuple[Count, Count, Count]
"""Channels, height and width."""

FAMILIES: dict[str, type] = {
    "cnn": CnnParams,
    "resnet": ResNetParams,
    "wide_resnet": WideResNetParams,
    "speednet": SpeedNetParams,
    "convnext": ConvNeXtParams,
    "vit": ViTParams,
    "custom": CustomParams,
    "pretrained": PretrainedParams,
}
"""Family -> dataclass of its searchable parameters, each with a default and its range."""


def params_of(config: ModelConfig) -> Any:
    """Return the parameters as the family's dataclass, complete and checked.

    Raises:
        UsageError: As ``build_model``.
    """
    if config.family not in FAMILIES:
        hint = did_you_mean(config.family, FAMILIES)
        known = f"; known are {', '.join(FAMILIES)}"
        raise UsageError(f"model: unknown family {config.family!r}{hint or known}")
    schema = schema_of(FAMILIES[config.family])
    return parse(schema, config.params, f"model.{config.family}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """The network of an earlier run's trial, as JSON in ``PretrainedParams.source``."""

    model: Annotated[ModelConfig, Opaque]
    image_shape: ImageShape


def source_of(params: PretrainedParams) -> Source:
    """Return the architecture of a model that starts from a run.

    Raises:
        UsageError: If it is missing.
    """
    if not params.source:
        raise UsageError(
            f"model.pretrained: the architecture of {params.run} is missing; read the "
            "configuration from a space file"
        )
    return from_json(Source, params.source)


def has_own_code(config: ModelConfig) -> bool:
    """Whether a user's code builds the network, or the network that it starts from."""
    if config.family == "pretrained" and config.params.get("source"):
        params: PretrainedParams = params_of(config)
        return has_own_code(source_of(params).model)
    return config.family == "custom"

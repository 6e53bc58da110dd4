"""Models that read longer rows than their configuration says: rotary positions, stretched.

The configuration says so afterwards, so a folder of the model loads as it was trained.
Sources: linear interpolation, arXiv 2306.15595; YaRN, arXiv 2309.00071; the functions are those of transformers.
"""

from collections.abc import Mapping
from typing import Any, Literal

from torch import nn

from featherweight.errors import ConfigError

RopeScaling = Literal["none", "linear", "yarn"]
"""The "dynamic" of transformers changes nothing up to the positions that a configuration names, so it is none here."""


def stretch_configuration(configuration: Any, positions: int, scaling: RopeScaling, *, where: str) -> None:
    """Let a configuration read so many tokens, in place; one that reads as many already stays as it is.

    Args:
        configuration: of transformers.
        positions: tokens of the longest row.
        scaling: how positions are mapped: linear and yarn by a factor; none leaves them, so that those beyond were
            never seen in training.
        where: opens a message.
    Raises:
        ConfigError: if positions are no rotary ones, or are scaled already.
    """
    text = configuration.get_text_config()
    present = getattr(text, "max_position_embeddings", None)
    if present is None or positions <= present:
        return
    rope = getattr(text, "rope_parameters", None)
    if not isinstance(rope, Mapping) or not rope:
        raise ConfigError(
            f"{where}: max_positions={positions} is more than the {present} of this {configuration.model_type}, which "
            "has a learned vector for each; expected a model with rotary positions. Lower max_positions, or choose "
            "another model."
        )
    kinds = rope if all(isinstance(one, Mapping) for one in rope.values()) else {"": rope}
    if scaling != "none":
        for one in kinds.values():
            if one.get("rope_type", "default") != "default":
                raise ConfigError(
                    f"{where}: rope_scaling={scaling} comes on top of rope_type={one['rope_type']} of the model; "
                    "expected positions that are not scaled yet. Set rope_scaling: none."
                )
        factor = positions / present
        more: dict[str, Any] = {"rope_type": scaling, "factor": factor, "original_max_position_embeddings": present}
        changed = {kind: {**one, **more} for kind, one in kinds.items()}
        text.rope_parameters = changed if kinds is rope else changed[""]
    text.max_position_embeddings = positions


def stretch_positions(model: nn.Module, positions: int, scaling: RopeScaling, *, where: str) -> None:
    """Let a model read so many tokens, in place; see `stretch_configuration`."""
    configuration: Any = model.config
    before = getattr(configuration.get_text_config(), "rope_parameters", None)
    stretch_configuration(configuration, positions, scaling, where=where)
    if getattr(configuration.get_text_config(), "rope_parameters", None) is before:
        return
    for name, module in list(model.named_modules()):
        if type(module).__name__.endswith("RotaryEmbedding") and hasattr(module, "config"):
            parent, _, last = name.rpartition(".")
            built = type(module)(config=module.config)
            device = next(module.buffers()).device
            setattr(model.get_submodule(parent), last, built.to(device))

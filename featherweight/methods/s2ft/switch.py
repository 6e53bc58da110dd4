"""Exchanging the adapter that is merged into a model, in place."""

from collections.abc import Iterable, Sequence

from torch import nn

from featherweight.errors import LISTED, ConfigError, did_you_mean
from featherweight.methods.s2ft.layer import S2FTLayer, s2ft_layers
from featherweight.methods.s2ft.soundness import require_sound
from featherweight.methods.s2ft.whole_tensors import let_heads_follow, require_one_head


def switch(model: nn.Module, adapter_name: str | Sequence[str] | None) -> None:
    """Let a model's weights hold exactly one adapter (or none, or some), whatever they held before.

    The base slices come back by copying, so after any number of switches the base is the same bit by bit. Not during a
    forward pass of another thread. Caches of keys and values belong to the adapter that filled them: drop them.
    Saved modules (`modules_to_save`) are those of the adapter that is merged, or else of the active one.

    Args:
        model: with S2FT adapters, of `peft.get_peft_model`.
        adapter_name: which one to merge; a list merges their sum; None brings the base back.
    Raises:
        ConfigError: if an adapter does not exist, or two of them have a head of their own; the model is then as before.
        CheckpointError: if an adapter is damaged; the model is then as before.
        NumericsError: if one holds NaN or infinite numbers; the model is then as before.
    Cost: reads and writes the selected slices, S*K elements each way; LoRA computes and writes all of the weight.
    Example:
        >>> import peft
        >>> from featherweight.methods.s2ft import S2FTConfig
        >>> from featherweight.models import load_model
        >>> model = peft.get_peft_model(load_model("tiny"), S2FTConfig(num_channels=8))
        >>> switch(model, "default")
        >>> switch(model, None)
    """
    names = [adapter_name] if isinstance(adapter_name, str) else list(adapter_name or ())
    layers = require_adapters(model, names, "switch")
    require_mergeable(model, names, "switch")
    for layer in layers.values():
        layer.switch(names)
    active = next(iter(layers.values())).active_adapters
    let_heads_follow(model, names or active)


def refresh(model: nn.Module) -> None:
    """Write adapters that train in place into the weights again.

    A forward pass does so by itself after an optimizer step, by the version counters of the parameters. Only after
    writes
    through `.data`, which move no counter, this call is needed.
    """
    for layer in s2ft_layers(model).values():
        layer.refresh()


def merged_adapters(layers: Iterable[S2FTLayer]) -> list[str]:
    """Return the adapters that weights hold, each once."""
    return list(dict.fromkeys(name for layer in layers for name in layer.merged_adapters))


def require_mergeable(model: nn.Module, adapter_names: Sequence[str], where: str) -> None:
    """Refuse adapters that cannot be merged together, or not at all, before the first weight is written.

    Raises:
        ConfigError: if two of them have a head of their own.
        CheckpointError: if one is damaged.
        NumericsError: if one holds NaN or infinite numbers.
    """
    names = list(dict.fromkeys(adapter_names))
    require_one_head(model, names, where)
    layers = s2ft_layers(model)
    shapes = {place: (layer.out_features, layer.in_features) for place, layer in layers.items()}
    for name in names:
        changes = {place: layer.change(name) for place, layer in layers.items() if name in layer.s2ft_delta}
        require_sound(changes, f"{where}: adapter={name!r}", shapes)


def require_adapters(model: nn.Module, names: Sequence[str], where: str) -> dict[str, S2FTLayer]:
    """Return the S2FT layers of a model that has all of some adapters.

    Raises:
        ConfigError: if the model has no S2FT layers, or lacks an adapter.
    """
    layers = s2ft_layers(model)
    if not layers:
        raise ConfigError(
            f"{where}: model={type(model).__name__} has no S2FT layers; expected a model of peft.get_peft_model with "
            "S2FTConfig. Add an adapter first."
        )
    known = sorted({name for layer in layers.values() for name in layer.s2ft_delta})
    for name in names:
        if name not in known:
            raise ConfigError(
                f"{where}: adapter={name!r} is none of this model; expected one of {known}. "
                f"{did_you_mean(name, known, otherwise=LISTED)}"
            )
    return layers

"""Exchanging the adapter that is merged into a model, in place."""

from collections.abc import Sequence

from torch import nn

from featherweight.errors import LISTED, ConfigError, did_you_mean
from featherweight.methods.s2ft.layer import S2FTLayer, s2ft_layers


def switch(model: nn.Module, adapter_name: str | Sequence[str] | None) -> None:
    """Let a model's weights hold exactly one adapter (or none, or some), whatever they held before.

    The base slices come back by copying, so after any number of switches the base is the same bit by bit. Not during a
    forward pass of another thread. Caches of keys and values belong to the adapter that filled them: drop them.

    Args:
        model: with S2FT adapters, of `peft.get_peft_model`.
        adapter_name: which one to merge; a list merges their sum; None brings the base back.
    Raises:
        ConfigError: if an adapter does not exist; the model is then as before.
    Cost: reads and writes the selected slices, S*K elements each way; LoRA computes and writes all of the weight.
    Example:
        >>> import peft
        >>> from featherweight.methods.s2ft import S2FTConfig
        >>> from featherweight.text.model import load_model
        >>> model = peft.get_peft_model(load_model("tiny"), S2FTConfig(num_channels=8))
        >>> switch(model, "default")
        >>> switch(model, None)
    """
    names = [adapter_name] if isinstance(adapter_name, str) else list(adapter_name or ())
    layers = require_adapters(model, names, "switch")
    for layer in layers.values():
        layer.switch(names)


def refresh(model: nn.Module) -> None:
    """Write adapters that train in place into the weights again.

    A forward pass does so by itself after an optimizer step, by the version counters of the parameters. Only after
    writes
    through `.data`, which move no counter, this call is needed.
    """
    for layer in s2ft_layers(model).values():
        layer.refresh()


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

"""Looking at data before channels are chosen: how active each channel is, and how large its gradients are.

Shapes: T tokens of a batch, C channels of an axis, U units, K the other axis.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.errors import ConfigError
from featherweight.methods.s2ft.channel_scores import ChannelStatistics
from featherweight.methods.s2ft.channel_selection import by_channel, choose_channels
from featherweight.methods.s2ft.config import S2FTConfig
from featherweight.methods.s2ft.model import base_weight, prepared_targets
from featherweight.methods.s2ft.targets import Target

SEQUENCES, TOKENS = 128, 512
"""How much data is looked at: so many sequences, so many tokens of each."""
MASSIVE = 100
"""Activation over the median one of its module from which on a channel is warned of."""


def select(model: nn.Module, data: Iterable[Any], config: S2FTConfig | None = None, **options: Any) -> S2FTConfig:
    """Choose the channels of a model by what data does in it, and return a configuration that names them.

    Args:
        model: a plain model of transformers; mode, gradients and random generators are left as they were.
        data: batches as the model takes them: mappings with input_ids, and attention_mask where there is padding;
            labels
            for gradients (default: the input_ids). At most 128 sequences of 512 tokens are looked at.
        config: what to choose; None makes one of `options`.
        options: fields of `S2FTConfig`, such as ``selection="activation", select="smallest"``.
    Returns:
        A configuration whose `selection` is explicit.
    Raises:
        ConfigError: if there is no data, or the configuration does not fit the model.
    Warns: if a chosen channel is a hundred times as active as the median of its module. Language models have a few
        such channels, on which every output rests, and a small change of their weights is a large one of the model.
    Cost: a forward pass of the data; with selection="gradient" a backward pass too, and one weight gradient at a time.
    Source: arXiv 2412.06289, section 4.
    """
    config = config if config is not None else S2FTConfig(**options)
    targets = prepared_targets(model, config)
    statistics = calibrate(model, data, targets, gradients=config.selection == "gradient")
    chosen = choose_channels(
        targets, config, lambda name: by_channel(base_weight(targets[name], None), targets[name].axis), statistics
    )
    _warn_of_massive_activations(chosen, targets, statistics, config)
    config.selection = chosen
    config.channel_pattern = {}
    return config


def _warn_of_massive_activations(
    chosen: Mapping[str, Tensor],
    targets: Mapping[str, Target],
    statistics: Mapping[str, ChannelStatistics],
    config: S2FTConfig,
) -> None:
    times = {}
    for name, indices in chosen.items():
        norm_U = statistics[name].unit_norm
        if len(indices) and (median := norm_U.median()) > 0:
            times[name] = float(norm_U[indices.long().div(targets[name].unit, rounding_mode="floor")].max() / median)
    name = max(times, key=lambda one: times[one], default="")
    if name and times[name] > MASSIVE:
        warnings.warn(
            f"fw.s2ft.select: selection={config.selection!r} with select={config.select!r} trains a channel of "
            f"'{name}' that is {times[name]:.0f} times as active as the median there; a small change of it changes "
            "every output, and much is forgotten. Choose at random or select='smallest', or watch "
            "measure_forgetting and lower the learning rate.",
            stacklevel=3,
        )


def calibrate(
    model: nn.Module, data: Iterable[Any], targets: Mapping[str, Target], *, gradients: bool = False
) -> dict[str, ChannelStatistics]:
    """Return the statistics of the channels of some modules.

    Args:
        model: a model of transformers.
        data: see `select`.
        targets: the modules, by full name.
        gradients: also measure the gradient of each unit's weights.
    Raises:
        ConfigError: if there is no data, or it never reaches a module.
    """
    sums = {name: _Sums(target) for name, target in targets.items()}
    mask: list[Tensor | None] = [None]
    handles = [targets[name].module.register_forward_hook(one.hook(mask, gradients)) for name, one in sums.items()]
    try:
        with _undisturbed(model, gradients, handles):
            sequences = 0
            for batch in data:
                if sequences >= SEQUENCES:
                    break
                inputs = _shortened(batch, SEQUENCES - sequences, next(model.parameters()).device)
                sequences += len(inputs["input_ids"])
                mask[0] = inputs.get("attention_mask")
                if gradients:
                    labels = inputs.pop("labels", inputs["input_ids"])
                    model(**inputs, labels=labels, use_cache=False).loss.backward()
                else:
                    inputs.pop("labels", None)
                    model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    idle = [name for name, one in sums.items() if not one.tokens]
    if idle:
        raise ConfigError(
            f"fw.s2ft.select: data reaches tokens=0 in '{idle[0]}'; expected some in each target module. Give "
            "batches with input_ids, or leave the module out."
        )
    return {name: one.finish() for name, one in sums.items()}


class _Sums:
    """What is added up of one module."""

    def __init__(self, target: Target) -> None:
        self.target = target
        units = target.channels // target.unit
        self.square = torch.zeros(target.channels, dtype=torch.float64)
        self.norm = torch.zeros(units, dtype=torch.float64)
        self.gradient = torch.zeros(units, dtype=torch.float64)
        self.tokens = self.batches = 0

    def hook(self, mask: list[Tensor | None], gradients: bool) -> Any:
        def see(module: nn.Module, args: Any, output: Tensor) -> None:
            x = args[0].detach()
            values = x if self.target.axis == "input" else output.detach()
            self._add(values, mask[0])
            if gradients and output.requires_grad:
                output.register_hook(lambda grad: self._add_gradient(x, grad.detach()))

        return see

    def _add(self, values: Tensor, mask: Tensor | None) -> None:
        if mask is not None and mask.shape == values.shape[:-1]:
            values = values[mask.bool()]
        flat_TC = values.flatten(0, -2).float()
        square_TC = flat_TC.square()
        self.square += square_TC.sum(0).double().cpu()
        self.norm += square_TC.view(len(flat_TC), -1, self.target.unit).sum(-1).sqrt().sum(0).double().cpu()
        self.tokens += len(flat_TC)

    def _add_gradient(self, x: Tensor, grad: Tensor) -> None:
        # One weight gradient at a time, reduced at once.
        x_TN, grad_TM = x.flatten(0, -2).float(), grad.flatten(0, -2).float()
        weight_CK = x_TN.t() @ grad_TM if self.target.axis == "input" else grad_TM.t() @ x_TN
        square = weight_CK.square().sum(-1).view(-1, self.target.unit).sum(-1)
        self.gradient += square.sqrt().double().cpu()
        self.batches += 1

    def finish(self) -> ChannelStatistics:
        gradient = (self.gradient / self.batches).float() if self.batches else None
        return ChannelStatistics((self.square / self.tokens).float(), (self.norm / self.tokens).float(), gradient)


def _shortened(batch: Any, rows: int, device: torch.device) -> dict[str, Any]:
    inputs = dict(batch) if isinstance(batch, Mapping) else {"input_ids": batch}
    if "input_ids" not in inputs:
        raise ConfigError(
            f"fw.s2ft.select: data has batches with the keys {sorted(inputs)}; expected mappings with input_ids, "
            "or token ids. Tokenize the text first."
        )
    tensors = {name: torch.as_tensor(value) for name, value in inputs.items()}
    return {name: one[:rows, :TOKENS].to(device) for name, one in tensors.items() if one.dim() >= 2}


@contextmanager
def _undisturbed(model: nn.Module, gradients: bool, handles: list[Any]) -> Iterator[None]:
    """Run in evaluation mode and leave modes, requires_grad and random generators as they were."""
    modes = {module: module.training for module in model.modules()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    try:
        with torch.random.fork_rng(devices=[]), torch.set_grad_enabled(gradients):
            if gradients:
                # Only activations need gradients here.
                for parameter in trained:
                    parameter.requires_grad_(False)
                embedding = model.get_input_embeddings()  # type: ignore[operator]
                handles.append(embedding.register_forward_hook(lambda module, args, output: output.requires_grad_()))
            yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        for module, mode in modes.items():
            module.training = mode

"""Core gradients: linear layers that never form the gradient of their weight.

A low-rank optimizer needs of a weight's gradient only its product with a basis. With this method the backward pass of a
linear layer computes just that (`nn/projected_linear.py`) and leaves it to the layer-wise optimizer of its weight
(`optim/backward/core_receiver.py`). Without such an optimizer, and where a whole gradient is needed, the layer is the
ordinary one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.errors import ConfigError
from featherweight.methods.forward_patch import (
    is_patched,
    original_forward,
    patch_forward,
    require_outermost,
    settings_of,
    unpatch_forward,
)
from featherweight.methods.method import Method
from featherweight.methods.options import CoreGradientOptions
from featherweight.methods.shared_input import layers_with_one_input
from featherweight.nn.int8_linear import Int8Linear
from featherweight.nn.int8_module import Int8Module
from featherweight.nn.projected_linear import projected_linear
from featherweight.optim.backward.updates import core_receiver
from featherweight.optim.sharding import sharded_of
from featherweight.ownership import Part, refuse_owned
from featherweight.report import Report
from featherweight.selection import select_modules


class CoreGradient(CoreGradientOptions, Method):
    """Let linear layers compute what a low-rank optimizer uses of a gradient, and never the gradient.

    Takes effect with `fw.optim.layerwise` and an optimizer that drops what lies outside of its subspaces (GaLore,
    Q-GaLore, LDAdam without error feedback). Updates are the same to rounding, with two exceptions: a layer that runs
    several times in a backward pass gets its new basis a step later, as with accumulation, because the sum of its
    gradients never exists; and without accumulation, too, `max_grad_norm` acts on a norm that is estimated outside of
    the subspaces (`clip="projected"` needs no estimate). A parameter with hooks of its own gets its whole gradient.

    Example:
        >>> import featherweight as fw
        >>> model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
        >>> report = fw.apply(model, CoreGradient())
        >>> optimizer = fw.optim.GaLoreAdamW(fw.optim.param_groups(model, rank=4), lr=1e-2)
        >>> with fw.optim.layerwise(model, optimizer):
        ...     model(torch.ones(8, 64)).square().mean().backward()
        >>> fw.remove(model, CoreGradient())
    """

    def apply(self, model: nn.Module, calibration: Any = None) -> Report:
        """Change the model in place; see `fw.apply`.

        Raises:
            ConfigError: if no linear layer is selected, or one is changed by another method already.
        """
        rows: list[list[str]] = []
        chosen: dict[str, nn.Module] = {}
        for name, module in select_modules(model, self.target_modules, self.exclude_modules).items():
            reason = _mismatch(module)
            if reason is None:
                refuse_owned(Part.FORWARD, module, "CoreGradient", name=name)
                chosen[name] = module
            rows.append([name, type(module).__name__, f"left alone: {reason}" if reason else "may leave its core"])
        if not chosen:
            raise ConfigError(
                f"CoreGradient: target_modules={self.target_modules!r} selects no linear layer with one matrix; "
                "expected at least one. Select others."
            )
        for name, module in chosen.items():
            settings = _Settings(module.get_parameter("weight"), self.prefer, self.refresh == "full")
            patch_forward(module, _forward, settings, method="CoreGradient", name=name)
        report = Report("CoreGradient")
        report.add_table("Modules", ["module", "class", "what happens"], rows)
        if self.share_basis:
            report.add_table("Shared bases", ["modules", "what happens"], _share(model, chosen))
        return report

    def remove(self, model: nn.Module) -> None:
        """Undo `apply`; see `fw.remove`.

        Raises:
            ConfigError: if something else was wrapped around a changed module since.
        """
        ours = [one for one in model.modules() if is_patched(one) and isinstance(settings_of(one), _Settings)]
        for module in ours:  # all or none
            require_outermost(module)
        for module in ours:
            unpatch_forward(module)


@dataclass
class _Settings:
    parameter: nn.Parameter
    prefer: str
    exact_refresh: bool
    siblings: "list[_Settings]" = field(default_factory=list)
    """Those of the layers with the same input, this one among them, in order; empty if the basis is not shared."""


def _forward(module: nn.Module, *args: Tensor, **named: Tensor) -> Tensor:
    if torch.compiler.is_compiling():  # what the optimizer asks for changes from step to step
        result: Tensor = torch.compiler.disable(_compute)(module, *args, **named)
        return result
    return _compute(module, *args, **named)


def _compute(module: nn.Module, *args: Tensor, **named: Tensor) -> Tensor:
    settings: _Settings = settings_of(module)
    weight: Tensor = module.weight  # type: ignore[assignment]
    if isinstance(weight, nn.Parameter):
        settings.parameter = weight  # FSDP2 puts another one there, once
    parameter = _parameter_behind(weight, settings.parameter)
    receiver = None
    if torch.is_grad_enabled() and weight.requires_grad and parameter is not None:
        parameter, siblings = sharded_of(parameter), [sharded_of(each.parameter) for each in settings.siblings]
        receiver = core_receiver(
            parameter, prefer=settings.prefer, exact_refresh=settings.exact_refresh, siblings=siblings
        )
    if receiver is None:
        result: Tensor = original_forward(module)(*args, **named)
        return result
    (x,) = (*args, *named.values())
    source = module.int8_weight() if isinstance(module, Int8Module) else None
    return projected_linear(x, weight, module.bias, receiver, source=source, is_transposed=_is_transposed(module))  # type: ignore[arg-type]


def _share(model: nn.Module, chosen: Mapping[str, nn.Module]) -> list[list[str]]:
    """Tell layers with the same input of each other, and return a row for each group of them."""
    rows = []
    ours = {id(module) for module in chosen.values()}
    for group in layers_with_one_input(model):
        members = {name: each for name, each in group.items() if id(each) in ours and not _is_transposed(each)}
        widths = {name: module.get_parameter("weight").shape[1] for name, module in members.items()}
        if len(set(widths.values())) > 1:
            rows.append(
                [", ".join(group), f"each its own: in_features differ ({', '.join(map(str, widths.values()))})"]
            )
            continue
        if len(members) > 1:
            settings: list[_Settings] = [settings_of(module) for module in members.values()]
            for each in settings:
                each.siblings = settings
        left_out = [name for name in group if name not in members]
        text = "may share a right basis" if len(members) > 1 else "each its own"
        rows.append([", ".join(group), text + (f"; without {', '.join(left_out)}" if left_out else "")])
    return rows


def _is_transposed(module: nn.Module) -> bool:
    return type(module).__name__ in ("Conv1D", "Int8Conv1D")


def _parameter_behind(weight: Tensor, parameter: nn.Parameter) -> Tensor | None:
    """Return the parameter that gets the gradient of the tensor a layer computes with; None if it is another tensor's.

    Inside a chunk a layer computes with a stand-in for its parameter, in a backward pass. What functional_call or a
    parametrization puts there has a gradient of its own.
    """
    if isinstance(weight, nn.Parameter):
        return weight
    if torch._C._current_graph_task_id() == -1:  # asked first: tensors inside of torch.func have no storage
        return None
    is_stand_in = weight.is_leaf and weight.untyped_storage()._cdata == parameter.untyped_storage()._cdata
    return parameter if is_stand_in else None


def _mismatch(module: nn.Module) -> str | None:
    weight = module._parameters.get("weight")
    if weight is None or weight.ndim != 2:
        return "no single weight matrix"
    if type(module) not in (nn.Linear, Int8Linear) and not _is_transposed(module):
        return "no plain linear layer"
    return None

"""Int8 weights: a model whose matrices are codes, trained without a float copy of them.

`Int8` turns weights into int8 codes in place. Modules, parameters and their names stay; gradients and optimizers work
as before, and the optimizers of `fw.optim` write the codes with stochastic rounding.
Source: Q-GaLore, arXiv 2407.08296, section 3.2. Differs from the paper: scales that stay, no zero point, embeddings too
if wanted; see `featherweight.quant.int8_update`.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from featherweight.errors import ConfigError, NumericsError
from featherweight.methods.method import Method
from featherweight.methods.options import Int8Options
from featherweight.nn.int8_linear import int8_class, to_float_, to_int8_
from featherweight.nn.int8_module import CODES, SCALE, Int8Module
from featherweight.ownership import Part, refuse_owned
from featherweight.quant.int8_weight import Int8Weight, has_values
from featherweight.report import Report
from featherweight.selection import select_embedding_modules, select_modules


class Int8(Int8Options, Method):
    """Options of int8 weights; ``fw.apply(model, fw.Int8())`` applies them, before the optimizer is built or after.

    Example:
        >>> import featherweight as fw
        >>> model = nn.Sequential(nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 8))
        >>> report = fw.apply(model, fw.Int8())
        >>> optimizer = fw.optim.GaLoreAdamW(fw.optim.param_groups(model, rank=4), lr=1e-2)
        >>> model(torch.ones(4, 512)).square().mean().backward()
        >>> optimizer.step()
        >>> model[0].weight_codes.dtype
        torch.int8
    """

    def apply(self, model: nn.Module, calibration: Any = None) -> Report:
        """Change a model in place; see `fw.apply`. Each float weight is freed before the next one is converted.

        Raises:
            ConfigError: if nothing can be changed, or another method has changed one of the modules.
            NumericsError: if a weight is not finite; the model then stays as it was.
        """
        selected = self._select(model)
        chosen, left = _judge(model, selected)
        if not chosen:
            raise ConfigError(
                f"Int8: model={type(model).__name__} has no weight that can be int8 ({_reasons(left)}); expected "
                "nn.Linear, nn.Embedding or Conv1D. Select other modules."
            )
        owners: dict[int, Int8Module] = {}
        rows: list[list[str | float | None]] = []
        for name, module in chosen.items():
            parameter: Tensor = module.weight  # type: ignore[assignment]
            owner = owners.get(id(parameter))
            before = parameter.nbytes
            values = parameter.detach() if owner is None and has_values(parameter) else None
            converted = to_int8_(module, self.group_size, owner)
            owners.setdefault(id(parameter), converted)
            if owner is not None:
                rows.append([name, f"{type(converted).__name__}, shares its weight", None, None, None, None])
                continue
            int8 = converted.int8_weight()
            error = _Error(None, None) if values is None else _rounding_error(int8, values)
            rows.append([name, type(converted).__name__, before, int8.nbytes, error.largest, error.rms])
            del values
        rows += [[name, f"left alone: {reason}", None, None, None, None] for name, reason in left.items()]
        report = Report("Int8 weights")
        columns = ["module", "what happens", "before (bytes)", "after (bytes)", "largest error", "rms error"]
        report.add_table("Modules", columns, rows)
        report.add_facts(_totals(rows))
        return report

    def remove(self, model: nn.Module) -> None:
        """Give the modules float weights again; see `fw.remove`.

        The values are those of the codes, not those from before `apply`.
        """
        for module in list(model.modules()):
            if isinstance(module, Int8Module):
                to_float_(module)

    @contextmanager
    def saving(self, model: nn.Module, folder: Path) -> Iterator[None]:
        """Let the model's state dict be an ordinary one in the block, so that what is written loads anywhere."""
        model.state_dict = lambda *_, **__: dequantized_state_dict(model)  # type: ignore[assignment, method-assign]
        try:
            yield
        finally:
            del model.state_dict

    def _select(self, model: nn.Module) -> dict[str, nn.Module]:
        if not any(True for _ in model.named_children()):  # a single layer has no name to select by
            return {"": model}
        selected = select_modules(model, self.target_modules, self.exclude_modules)
        if self.embeddings:
            more = select_embedding_modules(model)
            kept = select_modules(model, list(more), self.exclude_modules) if more else {}
            selected |= {name: module for name, module in kept.items() if name in more}
        order = {name: position for position, (name, _) in enumerate(model.named_modules())}
        return dict(sorted(selected.items(), key=lambda item: order[item[0]]))


def dequantized_state_dict(model: nn.Module, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Return the state dict of a model as if all its weights were floats: an ordinary checkpoint.

    ``model.save_pretrained(folder, state_dict=dequantized_state_dict(model, torch.bfloat16))`` writes a folder that
    transformers loads anywhere. The codes of a trained model hold its weights exactly; only `dtype` may round them.

    Args:
        model: with or without int8 weights.
        dtype: of all floating-point tensors; None keeps theirs, and that of the computation for int8 weights.
    Returns:
        Names and tensors as the model had them before `fw.Int8`; tied weights under each of their names.
    Cost: the float weights of the whole model, in memory at once.
    Example:
        >>> from featherweight.nn.int8_linear import Int8Linear
        >>> sorted(dequantized_state_dict(nn.Sequential(Int8Linear(2, 2))))
        ['0.bias', '0.weight']
    """
    everything = type(model).state_dict(model)
    state = {name: _cast(value, dtype) for name, value in everything.items() if not name.endswith((CODES, SCALE))}
    done: dict[int, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, Int8Module):
            handle: Tensor = module.weight
            if id(handle) not in done:
                done[id(handle)] = module.int8_weight().dequantize(dtype or handle.dtype)
            state[f"{name}.weight" if name else "weight"] = done[id(handle)]
    return state


def _cast(value: Any, dtype: torch.dtype | None) -> Any:
    is_float = isinstance(value, Tensor) and value.is_floating_point()
    return value.to(dtype) if is_float and dtype is not None else value


def _judge(model: nn.Module, selected: Mapping[str, nn.Module]) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Return the modules to change, and the reasons for those that are left alone."""
    sharing: dict[int, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        sharing[id(parameter)].append(name)
    reasons: dict[str, str] = {}
    adapters = _adapter_parts(model)
    for name, module in selected.items():
        if id(module) in adapters:
            reasons[name] = "is part of an adapter, which stays float"
        elif (reason := _mismatch(module)) is not None:
            reasons[name] = reason
    for name, module in selected.items():
        if name in reasons:
            continue
        holders = [other.rpartition(".")[0] for other in sharing[id(module.weight)]]
        outside = [other for other in holders if other not in selected or other in reasons]
        if outside:
            reasons[name] = f"shares its weight with '{outside[0]}', which is not selected"
            continue
        refuse_owned(Part.WEIGHT, module.weight, "Int8", name=f"{name}.weight")
        if "forward" in vars(module):
            raise ConfigError(
                f"Int8: module '{name}' has another forward already; expected a model whose linear layers are as their "
                "class made them. Apply Int8 before other methods, or call fw.remove first."
            )
        if not _is_finite(module.weight):
            raise NumericsError(
                f"Int8: weight='{name}.weight' holds NaN or infinity; expected finite values. Load a sound checkpoint."
            )
    return {name: module for name, module in selected.items() if name not in reasons}, reasons


def _adapter_parts(model: nn.Module) -> set[int]:
    """Identify the small layers that PEFT has put beside frozen ones."""
    found = set()
    for module in model.modules():
        for name in getattr(type(module), "adapter_layer_names", ()):
            part = getattr(module, name, None)
            found |= {id(one) for one in part.modules()} if isinstance(part, nn.Module) else set()
    return found


def _is_finite(weight: Any) -> bool:
    return not has_values(weight) or bool(torch.stack(list(weight.detach().aminmax())).isfinite().all())


def _mismatch(module: nn.Module) -> str | None:
    if isinstance(module, Int8Module):
        return "is int8 already"
    if int8_class(module) is None:
        return f"a {type(module).__name__} has no int8 form"
    weight: Any = module._parameters.get("weight")
    if (
        type(weight) not in (nn.Parameter, FakeTensor)
        or not weight.is_floating_point()
        or weight.ndim != 2
        or not weight.numel()
    ):
        return "its weight is no ordinary matrix"
    if isinstance(module, nn.Embedding) and (module.sparse or module.max_norm is not None):
        return "sparse gradients and max_norm have no int8 form"
    return None


@dataclass(frozen=True)
class _Error:
    largest: float | None
    rms: float | None


def _rounding_error(int8: Int8Weight, values: Tensor) -> _Error:
    largest, squares = 0.0, 0.0
    for start, stop in int8.row_tiles():
        difference = int8.dequantize(rows=slice(start, stop)).sub_(values[start:stop])
        largest = max(largest, float(difference.abs().max()))
        squares += float(difference.double().square().sum())
    return _Error(largest, (squares / values.numel()) ** 0.5)


def _totals(rows: list[list[Any]]) -> dict[str, Any]:
    changed = [row for row in rows if row[3] is not None]
    errors = [row[4] for row in changed if row[4] is not None]
    facts: dict[str, Any] = {
        "int8 weights": len(changed),
        "before (bytes)": sum(row[2] for row in changed),
        "after (bytes)": sum(row[3] for row in changed),
    }
    return {**facts, "largest rounding error": max(errors)} if errors else facts


def _reasons(left: Mapping[str, str]) -> str:
    return "; ".join(dict.fromkeys(left.values())) or "none was selected"

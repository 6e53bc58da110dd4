"""Which base model an adapter belongs to: shapes and some values of the weights that it changes."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from featherweight.errors import CheckpointError
from featherweight.methods.s2ft.quantized_base import backend_of
from featherweight.methods.s2ft.targets import is_conv1d, linear_features

_SAMPLES = 8
_TOLERANCE = 0.25
"""Relative difference of all samples together. Rounding the base to 4 bits makes 0.1, another training of it 0.05,
another model 1.4."""


def base_fingerprint(weights: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """Return shape and some values of each weight: enough to tell another model, not enough to be in the way.

    Args:
        weights: full module name -> (out_features, in_features).
    """
    found: dict[str, list[float]] = {}
    for name, weight in weights.items():
        places = torch.linspace(0, weight.numel() - 1, _SAMPLES, dtype=torch.float64).long()
        rows, columns = places // weight.shape[1], places % weight.shape[1]
        values = weight[rows.to(weight.device), columns.to(weight.device)].float().cpu()
        found[name] = [*map(float, weight.shape), *(float(f"{value:.6g}") for value in values.tolist())]
    return found


def fingerprint_shapes(fingerprint: Mapping[str, list[float]] | None) -> dict[str, tuple[int, int]]:
    """Return the (out_features, in_features) that stand in a fingerprint."""
    return {name: (int(values[0]), int(values[1])) for name, values in (fingerprint or {}).items()}


def require_same_base(
    known: Mapping[str, list[float]] | None, found: Mapping[str, list[float]] | None, where: str
) -> None:
    """Refuse an adapter of another base.

    Raises:
        CheckpointError: if shapes differ, or values by more than quantisation explains.
    """
    if known is None or found is None:
        return
    both = [name for name in known if name in found]
    for name in both:
        if known[name][:2] != found[name][:2]:
            raise CheckpointError(
                f"{where}: '{name}' has shape={tuple(map(int, found[name][:2]))}, but the adapter was made for "
                f"{tuple(map(int, known[name][:2]))}; expected the adapter's base model. Load that model."
            )
    ours = torch.tensor([value for name in both for value in known[name][2:]], dtype=torch.float64)
    theirs = torch.tensor([value for name in both for value in found[name][2:]], dtype=torch.float64)
    size = max(float(ours.norm()), float(theirs.norm()))
    difference = float((ours - theirs).norm()) / size if size else 0.0
    if difference > _TOLERANCE:
        raise CheckpointError(
            f"{where}: weights differ from those of the adapter's base by difference={difference:.2f} of their size; "
            f"expected at most {_TOLERANCE}. Load the base model that the adapter was trained on."
        )


def linear_shapes(model: nn.Module, names: Iterable[str], where: str) -> dict[str, tuple[int, int]]:
    """Return (out_features, in_features) of linear layers of a plain model.

    Raises:
        CheckpointError: if one does not exist or is no linear layer.
    """
    shapes = {}
    for name in names:
        module = find_module(model, name)
        sizes = None if module is None else linear_features(module)
        if sizes is None:
            raise CheckpointError(
                f"{where}: module='{name}' of the adapter is no linear layer of this model; expected the adapter's "
                "base. Load that model."
            )
        shapes[name] = (sizes[1], sizes[0])
    return shapes


def find_module(model: nn.Module, name: str) -> nn.Module | None:
    """Return a module by its full name, or None."""
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


def weight_of(module: nn.Module) -> Tensor:
    """Return the (out_features, in_features) weight of a linear layer: dequantised, or the product of its factors.

    Where the layer stores numbers as they are, the result is a view of them.
    """
    plain: Tensor = module.weight  # type: ignore[assignment]
    backend = backend_of(module)
    weight: Tensor = plain.detach() if backend is None else backend.get_base_weight(module)
    return weight.t() if is_conv1d(module) else weight


def base_weights(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """Return `weight_of` those of some modules that a model has, by full name."""
    modules = {name: find_module(model, name) for name in names}
    return {
        name: weight_of(module)
        for name, module in modules.items()
        if module is not None and linear_features(module) is not None
    }

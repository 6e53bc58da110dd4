"""SCALE: gradients normalised by rows, and momentum in the output head alone.

A preset of `LowRankOptimizer`, and the parameter groups that it needs. Source: Glentis et al., arXiv 2506.16659.
"""

from collections.abc import Iterable
from typing import Any, Unpack

from torch import nn

from featherweight.errors import ConfigError
from featherweight.optim.low_rank import LowRankOptimizer
from featherweight.optim.options import ScaleOptions
from featherweight.optim.presets.arguments import SCALE, complete, preset
from featherweight.selection import select_embedding_modules


@preset(SCALE)
class Scale(LowRankOptimizer):
    """Gradients with rows of one length; the only state is the momentum of the output head.

    For a weight W (M, N), M out_features, with gradient G, and b the momentum of its group, 0 for all but the head::

        m <- b m + (1 - b) G                           m = G without momentum
        D_i = m_i / max(rms(m_i), 1e-8)                for each row i; an embedding: for each column
        W <- (1 - lr * weight_decay) W - lr * D

    Vectors run AdamW at lr. The step goes tile by tile of rows, and with `fw.CoreGradient` and layer-wise updates the
    gradient of a linear layer without momentum is formed tile by tile, too: it never exists as a whole.

    Args:
        params: groups from `fw.optim.scale_param_groups`, which tell embedding and head from other weights; plain
            tensors are normalised by rows with momentum.
    Raises:
        ConfigError: for an option out of range or a low-rank group; at a step for a sparse gradient.
    Cost: state of the head's elements and of 2 for each element of a vector; two passes over an embedding's gradient.
    Source: arXiv 2506.16659, whose "columns" are the rows of a weight of `nn.Linear`; compared with the official code.
    Example:
        >>> import torch
        >>> model = torch.nn.Linear(128, 64, bias=False)
        >>> Scale([{"params": [model.weight], "momentum": 0.0}]).state_bytes()  # a counter
        8
    """

    def __init__(self, params: Iterable[Any], *positional: Any, **options: Unpack[ScaleOptions]) -> None:
        super().__init__(params, complete(self, positional, options))


def scale_param_groups(model: nn.Module, **keys: Any) -> list[dict[str, Any]]:
    """Split the trainable parameters of a model as SCALE treats them.

    Args:
        model: any module; transformers are asked for their output head.
        keys: further options of every group, such as `weight_decay`.
    Returns:
        Groups of named parameters: the output head (rows, with momentum; an embedding that is tied to it, too),
        embeddings (columns), weights that are stored transposed (GPT-2's Conv1D: columns), convolutions, all others
        (rows). Empty groups are left out.
    Raises:
        ConfigError: if the model has no trainable parameter.
    Example:
        >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4))
        >>> [(group["normalize"], [name for name, _ in group["params"]]) for group in scale_param_groups(model)]
        [('columns', ['0.weight']), ('rows', ['1.weight', '1.bias'])]
    """
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        raise ConfigError(
            f"scale_param_groups: {type(model).__name__} has no trainable parameter; expected at least one. Unfreeze "
            "some with requires_grad_(True)."
        )
    kinds: dict[int, str] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if isinstance(module, nn.Embedding) or type(module).__name__ in ("Conv1D", "Int8Conv1D"):
                kinds[id(parameter)] = "columns" if parameter.ndim >= 2 else "rows"
            elif isinstance(module, nn.modules.conv._ConvNd):
                kinds[id(parameter)] = "convolution"
    for module in select_embedding_modules(model).values():  # last: a tied embedding is a head
        if not isinstance(module, nn.Embedding):
            kinds.update({id(parameter): "head" for parameter in module.parameters(recurse=False)})
    own: dict[str, dict[str, Any]] = {
        "head": {"normalize": "rows"},
        "columns": {"normalize": "columns", "momentum": 0.0},
        "convolution": {"normalize": "rows", "momentum": 0.0, "stacked": False},
        "rows": {"normalize": "rows", "momentum": 0.0},
    }
    found = {
        kind: {
            "params": [(n, p) for n, p in trainable.items() if kinds.get(id(p), "rows") == kind],
            "low_rank": False,
            **special,
            **keys,
        }
        for kind, special in own.items()
    }
    return [group for group in found.values() if group["params"]]

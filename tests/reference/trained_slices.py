"""The slow twin of S2FT: the weight itself is trained, and its gradient is masked to the selected entries."""

import torch
from torch import nn


class MaskedLinear(nn.Module):
    """A linear layer whose whole weight has a gradient, of which a mask keeps the selected rows or columns."""

    def __init__(self, weight, bias, indices, axis):
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight.clone()), bias
        mask = torch.zeros_like(weight)
        if axis == "input":
            mask[:, indices.long()] = 1
        else:
            mask[indices.long()] = 1
        self.weight.register_hook(lambda grad: grad * mask)

    def forward(self, x):
        return nn.functional.linear(x, self.weight, self.bias)


def twin_of(model, layers):
    """Return a deep copy of a base model in which the S2FT layers' modules are masked ones, and those by name."""
    import copy

    twin = copy.deepcopy(model).requires_grad_(False)
    masked = {}
    for name, layer in layers.items():
        change = layer.change("default")
        base = layer.get_base_layer()
        parent, _, last = name.rpartition(".")
        masked[name] = MaskedLinear(base.weight.detach(), base.bias, change.indices, change.axis)
        setattr(twin.get_submodule(parent), last, masked[name])
    return twin, masked

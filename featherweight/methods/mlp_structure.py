"""Which modules are feed-forward layers, told by their parts and not by their class.

`mlp_structures` is the table; a new architecture with parts of other names is one more row.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from featherweight.nn.chunked_mlp import Linear
from featherweight.nn.hooks import is_hooked
from featherweight.registry import Registry


@dataclass(frozen=True)
class MlpStructure:
    """Names of the parts of a feed-forward layer that computes ``output(activation(first(x)) * second(x))``.

    Example:
        >>> mlp_structures.register("my_model", MlpStructure(inputs=("wi_gate", "wi_up"), output="wo"))
        >>> mlp_structures.get("my_model").output
        'wo'
    """

    inputs: tuple[str, ...]
    """Linear layers that read x: gate and up, in this order, or a single one."""
    output: str
    """Linear layer that makes the result."""
    activation: tuple[str, ...] = ("act_fn", "activation_fn", "act")
    """Where the activation may stand; the first that is there counts."""
    is_fused: bool = False
    """Whether the single input layer holds gate and up one after the other."""
    dropout: tuple[str, ...] = ()
    """Where a dropout of the result may stand: a module, or a number."""

    def matches(self, module: nn.Module) -> bool:
        """Tell whether a module has these parts, and no other part with parameters."""
        children = dict(module.named_children())
        names = {*self.inputs, self.output}
        if not names <= children.keys() or self._find(module, self.activation) is None:
            return False
        others = (child for name, child in children.items() if name not in names)
        return not any(True for child in others for _ in child.parameters()) and not module._parameters

    def width(self, module: nn.Module) -> int:
        """Return the number of features between the projections; LoRA layers know it like plain ones."""
        output = getattr(module, self.output)
        features = getattr(output, "in_features", None) or getattr(output, "nx", None)
        return int(features) if features else 4 * max(parameter.shape[-1] for parameter in module.parameters())

    def linears(self, module: nn.Module) -> list[Linear] | None:
        """Return weight and bias of each part, the output last; None if a part is more than a plain linear layer."""
        parts = [plain_linear(getattr(module, name)) for name in (*self.inputs, self.output)]
        found = [part for part in parts if part is not None]
        return found if len(found) == len(parts) else None

    def combine(self, module: nn.Module) -> Callable[..., Tensor]:
        """Return the function between the projections."""
        activation = self._find(module, self.activation)
        assert activation is not None, "the structure matches"
        if self.is_fused:

            def fused(products: Tensor) -> Tensor:
                gate, up = products.chunk(2, dim=-1)
                return up * activation(gate)

            return fused
        if len(self.inputs) == 1:
            return activation
        return lambda gate, up: activation(gate) * up

    def drop(self, module: nn.Module, result: Tensor) -> Tensor:
        """Apply the dropout that follows, if there is one."""
        dropout = self._find(module, self.dropout)
        if dropout is None:
            return result
        if callable(dropout):
            return dropout(result)
        return F.dropout(result, p=dropout, training=module.training)

    def _find(self, module: nn.Module, names: tuple[str, ...]) -> Any:
        return next((getattr(module, name) for name in names if getattr(module, name, None) is not None), None)


mlp_structures: Registry[MlpStructure] = Registry("feed-forward structure")
"""Feed-forward layers by the names of their parts."""
mlp_structures.register("gate and up", MlpStructure(("gate_proj", "up_proj"), "down_proj"))
mlp_structures.register("fused gate and up", MlpStructure(("gate_up_proj",), "down_proj", is_fused=True))
mlp_structures.register("c_fc", MlpStructure(("c_fc",), "c_proj", dropout=("dropout", "residual_dropout")))
mlp_structures.register("fc1", MlpStructure(("fc1",), "fc2"))
mlp_structures.register("dense_h_to_4h", MlpStructure(("dense_h_to_4h",), "dense_4h_to_h"))


def find_structure(module: nn.Module) -> tuple[str, MlpStructure] | None:
    """Return name and structure of a feed-forward layer, or None if the module is none."""
    for name in mlp_structures:
        structure = mlp_structures.get(name)
        if structure.matches(module):
            return name, structure
    return None


def plain_linear(module: nn.Module) -> Linear | None:
    """Return weight (M, N) and bias of a linear layer that does nothing else: no adapter, hook or other forward."""
    weight, bias = module._parameters.get("weight"), module._parameters.get("bias")
    if is_hooked(module) or "forward" in vars(module) or weight is None:
        return None
    if type(module) is nn.Linear:
        return weight, bias
    return (weight.t(), bias) if type(module).__name__ == "Conv1D" else None  # GPT-2 stores the transpose

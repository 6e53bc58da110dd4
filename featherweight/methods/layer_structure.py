"""Which modules are decoder layers whose attention can be set apart from what treats each token for itself.

A layer is known by its attention: a child that calls the attention function of transformers once and hands the result
to one output projection. What stands around it (norms, residuals, feed-forward layers, their order) is the layer's own
business. `attention_structures` is the table of output projections; another name is one more row.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from featherweight.methods.mlp_structure import find_structure
from featherweight.registry import Registry


@dataclass(frozen=True)
class AttentionStructure:
    """Names of what follows the attention function inside an attention module.

    Example:
        >>> attention_structures.register("my_model", AttentionStructure("to_out"))
        >>> attention_structures.get("my_model").output
        'to_out'
    """

    output: str
    """Linear layer that reads the heads' results side by side."""
    dropout: str | None = None
    """A dropout of its result, if there is one."""

    def matches(self, module: nn.Module) -> bool:
        """Tell whether a module looks like an attention module of transformers with such an output."""
        knows_kind = hasattr(getattr(module, "config", None), "_attn_implementation")
        return knows_kind and hasattr(module, "layer_idx") and isinstance(getattr(module, self.output, None), nn.Module)

    def finish(self, attention: nn.Module, heads_BLN: Tensor) -> Tensor:
        """Return what the attention module makes of the heads' results."""
        result: Tensor = getattr(attention, self.output)(heads_BLN)
        dropout = getattr(attention, self.dropout, None) if self.dropout else None
        if dropout is None:
            return result
        return dropout(result) if callable(dropout) else F.dropout(result, p=dropout, training=attention.training)


attention_structures: Registry[AttentionStructure] = Registry("attention structure")
"""Attention modules by the name of their output projection."""
attention_structures.register("o_proj", AttentionStructure("o_proj"))
attention_structures.register("dense", AttentionStructure("dense"))
attention_structures.register("c_proj", AttentionStructure("c_proj", dropout="resid_dropout"))
attention_structures.register("out_proj", AttentionStructure("out_proj"))

# What a model may collect from inside of a layer without our noticing the chunks.
_HARMLESS_RECORDS = {"hidden_states", "attentions", "cross_attentions"}


@dataclass(frozen=True)
class LayerStructure:
    """The parts of a decoder layer, by name."""

    attention: str
    rule: AttentionStructure
    feed_forward: tuple[str, ...]
    """Children that run after attention for certain."""
    width: int
    """Features between the projections of the feed-forward layer; what a token takes for a moment follows it."""

    def parameters(self, layer: nn.Module, *, before: bool) -> tuple[nn.Parameter, ...]:
        """Return the trainable parameters that may be used before attention, or after it.

        Norms are in both: which ones run before attention is the layer's business, and they are small.
        """
        inside, output = f"{self.attention}.", f"{self.attention}.{self.rule.output}."
        later = tuple(f"{name}." for name in self.feed_forward)

        def is_used(name: str) -> bool:
            if name.startswith(output) or name.startswith(later):
                return not before
            return before or not name.startswith(inside)

        return tuple(p for name, p in layer.named_parameters() if p.requires_grad and is_used(name))


def decoder_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield names and modules of the layers of transformers models."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    for name, module in model.named_modules():
        if isinstance(module, GradientCheckpointingLayer):
            yield name, module


def find_layer(layer: nn.Module) -> LayerStructure | str:
    """Return the parts of a decoder layer, or why they cannot be told."""
    found = [
        (name, attention_structures.get(rule))
        for name, child in layer.named_children()
        for rule in attention_structures
        if attention_structures.get(rule).matches(child)
    ]
    if len(found) != 1:
        return f"{len(found)} attention modules with an output of {', '.join(attention_structures.names())}"
    attention, rule = found[0]
    widths = {
        name: structure[1].width(child)
        for name, child in layer.named_children()
        if name != attention and (structure := find_structure(child)) is not None
    }
    first = next(layer.parameters())
    return LayerStructure(attention, rule, tuple(widths), max(widths.values(), default=4 * first.shape[-1]))


def recorded_in_layers(model: nn.Module) -> set[str]:
    """Return what the model collects from inside of its layers and would get once per chunk, such as router logits."""
    records: set[str] = set()
    for module in model.modules():
        kinds: Any = getattr(type(module), "_can_record_outputs", None)
        records |= set(kinds or ())
    return records - _HARMLESS_RECORDS


def closing_norms(model: nn.Module, layers: list[nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """Yield the norms that stand beside the stack of layers: modules without children and with vectors alone."""
    stacks = [one for one in model.modules() if isinstance(one, nn.ModuleList) and any(one[0] is it for it in layers)]
    for name, owner in model.named_modules():
        if not any(child is stack for child in owner.children() for stack in stacks):
            continue
        for child_name, child in owner.named_children():
            parameters = list(child.parameters())
            is_leaf = next(child.children(), None) is None
            if is_leaf and parameters and all(parameter.ndim == 1 for parameter in parameters):
                yield f"{name}.{child_name}" if name else child_name, child

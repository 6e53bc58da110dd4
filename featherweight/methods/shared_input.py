"""Which linear layers read the same input, told by their names inside one module and not by its class.

`shared_inputs` is the table; a new architecture with parts of other names is one more row.
"""

from collections.abc import Iterator

from torch import nn

from featherweight.registry import Registry

shared_inputs: Registry[tuple[str, ...]] = Registry("shared input")
"""Names of the children of one module that read the same input.

Example:
    >>> shared_inputs.register("my_model", ("to_q", "to_k", "to_v"))
"""
shared_inputs.register("q_proj, k_proj, v_proj", ("q_proj", "k_proj", "v_proj"))
shared_inputs.register("gate_proj, up_proj", ("gate_proj", "up_proj"))
shared_inputs.register("query, key, value", ("query", "key", "value"))
shared_inputs.register("wq, wk, wv", ("wq", "wk", "wv"))
shared_inputs.register("w1, w3", ("w1", "w3"))


def layers_with_one_input(model: nn.Module) -> Iterator[dict[str, nn.Module]]:
    """Yield the modules of each row of the table that stand side by side somewhere in a model, by their full names.

    A module that stands at several places is yielded once, and a group has at least two.
    """
    seen: set[int] = set()
    for path, parent in model.named_modules():
        children = dict(parent.named_children())
        for row in shared_inputs:
            names = [name for name in shared_inputs.get(row) if name in children and id(children[name]) not in seen]
            if len(names) > 1:
                seen |= {id(children[name]) for name in names}
                yield {f"{path}.{name}" if path else name: children[name] for name in names}

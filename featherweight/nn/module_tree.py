"""The tree of modules of a model: exchanging one by its name, and parameters that several of them hold."""

from torch import nn


def replace_module(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put a module in the place of another one.

    Args:
        model: changed in place.
        name: full name of the module to replace, not the root's.
        new: takes its place; hooks of the old one go with the old one.
    Raises:
        AttributeError: if the model has no parent of such a name.
    """
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, new)


def shared_parameters(model: nn.Module) -> set[int]:
    """Return the ids of parameters that more than one module holds: to factor one of them would untie them."""
    uses: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    return {key for key, count in uses.items() if count > 1}

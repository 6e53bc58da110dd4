"""Which layers of a model FSDP2 gathers together: a group for each layer that comes several times, one for the rest."""

from collections.abc import Iterator

from torch import Tensor, nn


def repeated_layers(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the layers of a model that come several times, such as the decoder layers of a transformer.

    Example:
        >>> model = nn.ModuleDict({"embed": nn.Embedding(4, 2), "layers": nn.ModuleList(nn.Linear(2, 2) for _ in "ab")})
        >>> [type(layer).__name__ for layer in repeated_layers(model)]
        ['Linear', 'Linear']
    """
    inside: set[nn.Module] = set()
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and module not in inside and len({type(one) for one in module}) == 1:
            inside.update(one for layer in module for one in layer.modules())
            yield from module


def layer_groups(model: nn.Module) -> list[list[Tensor]]:
    """Return the parameters of each group that is gathered at once, the rest of the model last; tied ones count once.

    Example:
        >>> model = nn.ModuleDict({"embed": nn.Embedding(4, 2), "layers": nn.ModuleList(nn.Linear(2, 2) for _ in "ab")})
        >>> [len(group) for group in layer_groups(model)]
        [2, 2, 1]
    """
    groups: list[list[Tensor]] = [list(layer.parameters()) for layer in repeated_layers(model)]
    known = {id(parameter) for group in groups for parameter in group}
    return [*groups, [parameter for parameter in model.parameters() if id(parameter) not in known]]

"""A sharded model as one process would have it: whole tensors for files, and files for sharded models.

Gathered tensor by tensor into the memory of the host; what is not sharded is taken as it is.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.optim.sharding import shard_of
from featherweight.unwrap import is_distributed, local_of


class WholeModel(nn.Module):
    """Stands for a sharded model where a state dict is written or read. Building one is a collective.

    Args:
        model: sharded or not; an ordinary one is read and written directly.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = (model,)  # in a tuple, so that it is no submodule
        self._whole = whole_weights(model)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return whole tensors by the names of the model; tied ones are one tensor."""
        return dict(self._whole)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Write whole tensors into the rows of this process, or into ordinary tensors.

        Returns:
            Names that the state lacks, and names that the model lacks, as torch does.
        """
        (model,) = self._model
        parts = model.state_dict(keep_vars=True)
        shards = {name: shard_of(one) for name, one in model.named_parameters(remove_duplicate=False)}
        with torch.no_grad():
            for name, part in parts.items():
                if name in state_dict:
                    shard, whole = shards.get(name), state_dict[name]
                    local_of(part).copy_(whole if shard is None else shard.part(whole))
        missing = [name for name in parts if name not in state_dict]
        return missing, [name for name in state_dict if name not in parts]


def is_sharded(model: nn.Module) -> bool:
    """Say whether a model holds shards of rows."""
    return any(is_distributed(parameter) for parameter in model.parameters())


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of a model with whole tensors, tied ones once; a collective if it is sharded."""
    first: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        first.setdefault(id(parameter), name)
    owners = {name: first[id(one)] for name, one in model.named_parameters(remove_duplicate=False)}
    found: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        owner = owners.get(name, name)
        found[name] = found[owner] if owner in found else whole_tensor(tensor)
    return found


def whole_tensor(value: Any) -> Any:
    """Return all of a DTensor in the memory of the host; anything else comes back as it is. A collective."""
    found: Any = value
    return found.full_tensor().cpu().clone() if isinstance(value, Tensor) and is_distributed(value) else value


def whole_state(state: Any) -> Any:
    """Return nested dicts, lists and tuples with whole tensors; a collective if there are DTensors."""
    if isinstance(state, Mapping):
        return {key: whole_state(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(whole_state(value) for value in state)
    return whole_tensor(state)

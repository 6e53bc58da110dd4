"""What an operator does to storages, and which tensors stand inside of a value."""

from collections.abc import Iterable, Mapping
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._python_dispatch import is_traceable_wrapper_subclass_type

_aten = torch.ops.aten
# Their schemas promise an alias (or hide one), and the truth for our purpose is the opposite.
_NEW_DESPITE_ALIAS = frozenset(
    {_aten.lift_fresh.default, *(getattr(_aten.set_, name) for name in _aten.set_.overloads())}
)
_ALIAS_DESPITE_NEW = frozenset({_aten._unsafe_view.default})

SPARSE_PARTS = {
    torch.sparse_coo: ("_indices", "_values"),
    torch.sparse_csr: ("crow_indices", "col_indices", "values"),
    torch.sparse_bsr: ("crow_indices", "col_indices", "values"),
    torch.sparse_csc: ("ccol_indices", "row_indices", "values"),
    torch.sparse_bsc: ("ccol_indices", "row_indices", "values"),
}
"""Names of the methods that give the dense parts of a sparse tensor, by layout."""


@cache
def is_wrapper(tensor_type: type) -> bool:
    """Tell whether tensors of a class are made of others, as a DTensor is."""
    return is_traceable_wrapper_subclass_type(tensor_type)


@cache
def effect_of(func: Any) -> tuple[bool, bool]:
    """Tell from an operator's schema whether its results may be new storages, and old ones of another size."""
    if func in _NEW_DESPITE_ALIAS:
        return True, True
    if func in _ALIAS_DESPITE_NEW:
        return False, False
    schema = getattr(func, "_schema", None)  # higher-order operators have none
    if schema is None:
        return True, True
    aliases = [result.alias_info for result in schema.returns]
    return any(alias is None for alias in aliases), any(alias is not None and alias.is_write for alias in aliases)


def tensors_in(value: object, seen: set[int] | None = None) -> Iterable[Tensor]:
    """Yield all tensors inside containers and plain objects (optimizers keep projectors as objects), each once."""
    if isinstance(value, Tensor):
        yield value
        return
    if value is None or callable(value) or isinstance(value, str | int | float | complex | ModuleType | Optimizer):
        return
    if isinstance(value, Mapping):
        parts: Iterable[object] = value.values()
    elif isinstance(value, list | tuple | set | frozenset):
        parts = value
    else:
        parts = getattr(value, "__dict__", {}).values()
    seen = set() if seen is None else seen
    if id(value) in seen:
        return
    seen.add(id(value))
    for part in list(parts):
        yield from tensors_in(part, seen)

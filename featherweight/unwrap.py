"""What stands inside the wrappers that training loops put around models and optimizers.

Wrappers pass calls on, but hide what the rest of the package looks for: names of modules, classes, hooks of the step.
"""

from functools import cache
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

_MODEL_WRAPPERS = {
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "FullyShardedDataParallel": "module",
    "OptimizedModule": "_orig_mod",
}
"""Class -> attribute that holds the model: of torch.nn.parallel, of FSDP 1, of torch.compile."""


def unwrap_model(model: nn.Module, *, peft: bool = False) -> nn.Module:
    """Return the model inside data-parallel wrappers and `torch.compile`.

    Args:
        model: wrapped any number of times, or not.
        peft: take the base model out of a PEFT model, too.

    Example:
        >>> inner = nn.Linear(2, 2)
        >>> unwrap_model(nn.DataParallel(inner)) is inner, unwrap_model(inner) is inner
        (True, True)
    """
    while True:
        # By name: torch.compile's class is one of torch._dynamo, whose import takes seconds.
        attribute = next((_MODEL_WRAPPERS[one.__name__] for one in type(model).__mro__ if _is_wrapper(one)), None)
        if attribute is not None:
            model = getattr(model, attribute)
        elif peft and any(one.__name__ == "PeftModel" for one in type(model).__mro__):
            model = model.get_base_model()  # type: ignore[operator]
        else:
            return model


def unwrap_optimizer(optimizer: Any) -> Any:
    """Return the optimizer inside wrappers such as accelerate's and Lightning's, whose own step hooks never run.

    Args:
        optimizer: a wrapped optimizer, or anything else, which comes back as it is.
    """
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer) and inner is not optimizer:
        optimizer = inner
    return optimizer


def is_deepspeed(thing: Any) -> bool:
    """Say whether an object is one of DeepSpeed's engines or optimizers, without importing it.

    By the package of any of its classes, so that subclasses and later names are known, too; or by what an engine alone
    can be asked (its stage of ZeRO), as of one that somebody has wrapped.
    """
    is_of_package = any(one.__module__.partition(".")[0] == "deepspeed" for one in type(thing).__mro__)
    return is_of_package or callable(getattr(thing, "zero_optimization_stage", None))


def _is_wrapper(kind: type) -> bool:
    return kind.__name__ in _MODEL_WRAPPERS and kind.__module__.startswith("torch.")


def is_distributed(tensor: Tensor) -> bool:
    """Say whether a tensor is a DTensor, without importing its module, which takes a second."""
    return _is_dtensor(type(tensor))


@cache
def _is_dtensor(kind: type) -> bool:
    return any(one.__name__ == "DTensor" for one in kind.__mro__)


def local_of(tensor: Any) -> Any:
    """Return the rows at hand of a DTensor, as a view of its memory; an ordinary tensor comes back as it is."""
    found: Any = tensor
    return found.to_local() if isinstance(tensor, Tensor) and is_distributed(tensor) else tensor

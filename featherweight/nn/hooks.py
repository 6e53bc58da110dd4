"""Whether somebody else listens in on a module's calls, or changes them."""

from functools import partial

from torch import nn


def is_hooked(module: nn.Module) -> bool:
    """Tell whether a call of the module runs hooks that may change its result or its gradients.

    Hooks of an object with ``only_observes = True`` (a memory tracker) do not count: a measurement must see the
    computation that takes place without it. Nor do those that torch keeps for all modules at once.
    """
    tables = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(not _only_observes(hook) for table in tables for hook in table.values())


def _only_observes(hook: object) -> bool:
    bound = hook.func if isinstance(hook, partial) else hook
    return bool(getattr(getattr(bound, "__self__", None), "only_observes", False))

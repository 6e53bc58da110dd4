"""Whether somebody else listens in on a module's calls, or changes them."""

from functools import partial

from torch import nn
from torch.nn.modules import module as torch_hooks

_OF_ALL_MODULES = (
    torch_hooks._global_forward_hooks,
    torch_hooks._global_forward_pre_hooks,
    torch_hooks._global_backward_hooks,
    torch_hooks._global_backward_pre_hooks,
)


def is_hooked(module: nn.Module) -> bool:
    """Tell whether a call of the module runs hooks that may change its result or its gradients.

    Hooks that torch keeps for all modules at once count too. Those of an object or function with
    ``only_observes = True`` (a memory tracker) do not: a measurement must see the computation that takes place without
    it.
    """
    own = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(not _only_observes(hook) for table in (*own, *_OF_ALL_MODULES) for hook in table.values())


def _only_observes(hook: object) -> bool:
    bound = hook.func if isinstance(hook, partial) else hook
    return bool(getattr(getattr(bound, "__self__", bound), "only_observes", False))

"""Calls of a module inside a backward pass, on stand-ins for its parameters.

`torch.autograd.grad` with respect to a parameter itself would run the parameter's tensor hooks for every chunk. With
respect to a detached stand-in it runs none, and the sum over the chunks reaches the parameter once.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.errors import ConfigError


def trainable_parameters(module: nn.Module) -> tuple[nn.Parameter, ...]:
    """Return the parameters that require a gradient, tied ones once, in the module's order."""
    return tuple(parameter for parameter in module.parameters() if parameter.requires_grad)


def stand_ins(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return leaves that share the tensors' memory and stand outside their graph."""
    return tuple(tensor.detach().requires_grad_(tensor.requires_grad) for tensor in tensors)


@contextmanager
def replaced_parameters(module: nn.Module, old: tuple[Tensor, ...], new: tuple[Tensor, ...]) -> Iterator[None]:
    """Let a module compute with other tensors in the place of some parameters, wherever these stand in it."""
    replacement = {id(before): after for before, after in zip(old, new, strict=True)}
    changed: list[tuple[dict[str, Any], str, Tensor]] = []
    for child in module.modules():
        parameters: dict[str, Any] = child._parameters
        for name, parameter in parameters.items():
            if id(parameter) in replacement:
                changed.append((parameters, name, parameter))
    try:
        for parameters, name, parameter in changed:
            parameters[name] = replacement[id(parameter)]
        yield
    finally:
        for parameters, name, parameter in changed:
            parameters[name] = parameter


def require_declared_leaves(where: str, outputs: tuple[Tensor, ...], declared: tuple[Tensor, ...]) -> None:
    """Refuse a graph that reaches a trainable tensor which nobody will hand a gradient to.

    Raises:
        ConfigError: names the shape of the tensor that was found.
    Cost: one walk over the graph of a chunk.
    """
    known = {id(tensor) for tensor in declared}
    pending: list[Any] = [tensor.grad_fn for tensor in outputs if tensor.grad_fn is not None]
    seen = set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in known:
            raise ConfigError(
                f"{where}: fn uses a trainable tensor of shape {tuple(leaf.shape)} that is neither x nor among params; "
                "expected every trainable tensor as an argument, for its gradient would be lost. Pass it in params."
            )
        pending.extend(parent for parent, _ in node.next_functions)


def graph_of_its_own() -> AbstractContextManager[object]:
    """Return a context whose saved tensors stay out of hooks around it: checkpoints and offloading are not for them."""
    # Detached: a node that saves its own output would hold itself, and a part of the graph that no gradient passes
    # through is never told to let go.
    return torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.detach(), lambda tensor: tensor)


def refuse_double_backward(where: str) -> None:
    """Refuse a backward pass that is to be differentiated again; autograd enables gradients only in such a one.

    Raises:
        ConfigError: if it is one.
    """
    if torch.is_grad_enabled():
        raise ConfigError(
            f"{where}: create_graph=True asks for the gradient of a gradient; expected a first-order backward pass. "
            "Use the plain layer where you need second derivatives."
        )


def refuse_transforms(where: str) -> None:
    """Refuse to run inside `torch.func.grad`, `vmap` and their like, which cannot look into hand-written passes.

    Raises:
        ConfigError: inside of one.
    """
    if torch._C._are_functorch_transforms_active():
        raise ConfigError(
            f"{where}: torch.func transforms (grad, vmap, jvp) cannot look into its hand-written backward pass; "
            "expected loss.backward() or torch.autograd.grad. Use the plain layer inside of transforms."
        )


def graph_is_retained() -> bool:
    """Tell whether the running backward pass may be followed by another one over the same graph."""
    ask: Callable[[], bool] | None = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return True if ask is None else ask()


class ForwardState:
    """The autocast and random states of a forward pass, for a backward pass that repeats parts of it.

    Args:
        device_type: where the work runs.
        keep_rng: also remember the random generators (5 KB).
        tensors: whose devices' generators count.
    """

    def __init__(self, device_type: str, *, keep_rng: bool, tensors: tuple[Tensor, ...] = ()) -> None:
        self._autocast = autocast_like_now(device_type)
        self._rng: Tensor | None = None
        self._device_type = device_type
        if keep_rng:
            from torch.utils.checkpoint import get_device_states

            self._rng = torch.get_rng_state()
            self._devices, self._device_states = get_device_states(*tensors)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Run a block in these states; afterwards the random generators are as they were before the block."""
        with self._autocast():
            if self._rng is None:
                yield
                return
            from torch.utils.checkpoint import set_device_states

            with torch.random.fork_rng(devices=self._devices, device_type=_rng_device_type(self._device_type)):
                torch.set_rng_state(self._rng)
                if self._devices:
                    set_device_states(self._devices, self._device_states, device_type=self._device_type)
                yield


def autocast_like_now(device_type: str) -> Callable[[], Any]:
    """Return a function that makes a context with the autocast settings of this moment."""
    if not torch.amp.is_autocast_available(device_type):
        return nullcontext
    enabled, dtype = torch.is_autocast_enabled(device_type), torch.get_autocast_dtype(device_type)
    cached = torch.is_autocast_cache_enabled()
    return lambda: torch.autocast(device_type, dtype=dtype, enabled=enabled, cache_enabled=cached)


def without_autocast(device_type: str) -> Any:
    """Return a context in which every operator keeps the dtypes that it is given."""
    available = torch.amp.is_autocast_available(device_type)
    return torch.autocast(device_type, enabled=False) if available else nullcontext()


def _rng_device_type(device_type: str) -> str:
    return "cuda" if device_type in ("cpu", "meta") else device_type

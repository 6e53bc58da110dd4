"""What is looked at before and after each step of every optimizer in the process, those of other packages included.

The one place that enters torch's hooks for all optimizers; they stay for the life of the process.
"""

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

Check = Callable[[Optimizer, bool], None]
"""Takes the optimizer, and whether its step was given a closure, which computes gradients later; refuses by raising."""

_before: list[Check] = []
_after: list[Callable[[], None]] = []


def before_every_step(check: Check) -> None:
    """Let a function look at each optimizer before each of its steps, from now on.

    Args:
        check: entered once, however often it is given. Quick: every step of the process waits for it.
    """
    if not _before:
        register_optimizer_step_pre_hook(_look)
    if check not in _before:
        _before.append(check)


def after_every_step(act: Callable[[], None]) -> None:
    """Call a function after each step of every optimizer, from now on.

    Args:
        act: entered once, however often it is given. Quick, and without exceptions.
    """
    if not _after:
        register_optimizer_step_post_hook(_tell)
    if act not in _after:
        _after.append(act)


def _look(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    has_closure = any(callable(one) for one in (*args[1:], *kwargs.values()))  # the first one is the optimizer
    for check in _before:
        check(optimizer, has_closure)


def _tell(*_: Any) -> None:
    for act in _after:
        act()

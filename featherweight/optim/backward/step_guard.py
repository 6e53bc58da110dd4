"""What is looked at before any optimizer of the process steps, those of torch and of other packages included."""

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

_checks: list[Callable[[Optimizer], None]] = []


def before_every_step(check: Callable[[Optimizer], None]) -> None:
    """Let a function look at each optimizer before each of its steps, from now on; it refuses by an exception.

    Args:
        check: entered once, however often it is given. Quick: every step of the process waits for it.
    """
    if not _checks:
        register_optimizer_step_pre_hook(_look)
    if check not in _checks:
        _checks.append(check)


def _look(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if torch.compiler.is_compiling():
        return
    for check in _checks:
        check(optimizer)

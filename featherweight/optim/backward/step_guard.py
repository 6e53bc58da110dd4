"""What layer-wise updates look at before any optimizer of the process steps, outside of compiled steps."""

from collections.abc import Callable

import torch
from torch.optim import Optimizer

from featherweight import every_step

_checks: list[Callable[[Optimizer], None]] = []


def before_every_step(check: Callable[[Optimizer], None]) -> None:
    """Let a function look at each optimizer before each of its steps, from now on; it refuses by an exception.

    Args:
        check: entered once, however often it is given. Quick: every step of the process waits for it.
    """
    every_step.before_every_step(_look)
    if check not in _checks:
        _checks.append(check)


def _look(optimizer: Optimizer, has_closure: bool) -> None:
    if torch.compiler.is_compiling():
        return
    for check in _checks:
        check(optimizer)

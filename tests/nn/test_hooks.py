"""Hooks that change a call, and those that only look."""

from functools import partial

import pytest
import torch
from torch import nn

from featherweight.memory import measure_memory
from featherweight.nn.hooks import is_hooked

REGISTER = ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"]


@pytest.mark.parametrize("register", [*REGISTER, "register_full_backward_pre_hook"])
def test_every_kind_of_hook_counts_until_it_is_removed(register):
    module = nn.Linear(2, 2)
    handle = getattr(module, register)(lambda *_: None)
    assert is_hooked(module)
    handle.remove()
    assert not is_hooked(module)


class Watcher:
    only_observes = True

    def look(self, *_):
        """Change nothing."""


def test_hooks_of_one_who_only_observes_do_not_count_unless_another_stands_beside():
    module = nn.Linear(2, 2)
    module.register_forward_hook(Watcher().look)
    module.register_forward_hook(partial(Watcher().look, "label"))
    assert not is_hooked(module)
    module.register_forward_hook(lambda *_: None)
    assert is_hooked(module)


def test_a_measurement_of_memory_only_observes():
    module = nn.Linear(2, 2)
    with measure_memory(module):
        assert module._forward_hooks and not is_hooked(module)
        module(torch.zeros(1, 2)).sum().backward()

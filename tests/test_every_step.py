import pytest
import torch
from torch import nn

from featherweight import every_step


@pytest.fixture(autouse=True)
def tables(monkeypatch):
    """Checks of these tests end with them; torch's hook, once entered, stays."""
    monkeypatch.setattr(every_step, "_before", list(every_step._before))
    monkeypatch.setattr(every_step, "_after", list(every_step._after))


def optimizer():
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    return torch.optim.SGD([parameter], lr=0.1)


def test_a_check_sees_each_optimizer_once_and_whether_gradients_come_later():
    seen = []

    def check(one, has_closure):
        seen.append((one, has_closure))

    first, second = optimizer(), optimizer()
    for _ in range(2):
        every_step.before_every_step(check)
    first.step()
    second.step(lambda: 0.0)
    second.step(closure=lambda: 0.0)
    assert seen == [(first, False), (second, True), (second, True)]


def test_a_check_refuses_before_anything_is_written():
    def refuse(one, has_closure):
        raise RuntimeError("no")

    every_step.before_every_step(refuse)
    refused = optimizer()
    with pytest.raises(RuntimeError, match="no"):
        refused.step()
    assert torch.equal(refused.param_groups[0]["params"][0], torch.ones(2))


def test_what_comes_after_a_step_is_told_of_each_once():
    count = []

    def act():
        count.append(1)

    for _ in range(2):
        every_step.after_every_step(act)
    one = optimizer()
    one.step()
    one.step()
    assert len(count) == 2

"""The compiled rule computes what AdamW's rule does."""

import pytest
import torch

from featherweight.optim import GaLoreAdamW
from featherweight.optim.policies.compiled import adamw_direction
from featherweight.optim.policies.rules import AdamWRule, rules


@pytest.mark.parametrize("eps_mode", ["torch", "official"])
def test_the_function_that_is_compiled_equals_the_rule(eps_mode):
    group = {"betas": (0.9, 0.99), "eps": 1e-3, "eps_mode": eps_mode}
    generator = torch.Generator().manual_seed(0)
    ours, theirs = ({name: torch.zeros(5, 7, dtype=torch.float64) for name in ("exp_avg", "exp_avg_sq")} for _ in "ab")
    for step in range(1, 6):
        grad = torch.randn(5, 7, generator=generator, dtype=torch.float64)
        numbers = (0.1, 0.99, 0.01, 1 - 0.9**step, (1 - 0.99**step) ** 0.5, 1e-3)
        scalars = [torch.tensor(number, dtype=torch.float64) for number in numbers]
        found = adamw_direction(grad, ours["exp_avg"], ours["exp_avg_sq"], scalars, eps_mode == "official")
        expected = AdamWRule().direction(grad, theirs, step, group)
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-15)


def test_the_rule_is_known_by_name_and_keeps_the_state_of_adamw():
    assert rules.get("adamw_compiled").full_rank_rule == "adamw"
    shape = rules.get("adamw_compiled").moments((3, 4), {})
    assert shape == AdamWRule().moments((3, 4), {})


@pytest.mark.slow  # the compiler
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # of torch's own modules
def test_a_training_run_with_the_compiled_rule_is_the_same():
    def train(rule):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(24, 40), torch.nn.Tanh(), torch.nn.Linear(40, 24))
        groups = [
            {"params": [model[0].weight, model[2].weight], "rank": 4},
            {"params": [model[0].bias, model[2].bias], "low_rank": False},
        ]
        optimizer = GaLoreAdamW(groups, lr=1e-2, update_proj_gap=3, rule=rule)
        for _ in range(8):
            model(torch.randn(64, 24)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        return [p.detach() for p in model.parameters()]

    torch.testing.assert_close(train("adamw_compiled"), train("adamw"), rtol=1e-4, atol=1e-6)  # float32, eight steps

"""Int8 weights on shares of rows: the codes of one process, gathered as bytes."""

import pytest
import ranks
import torch
from distributed_cores import Whole, codes, q_galore, train_codes

pytestmark = pytest.mark.slow
"""Processes that import FSDP2 take ten seconds each."""


@pytest.fixture(scope="module", params=[2, 3])
def found(request, tmp_path_factory):
    return ranks.run("distributed_cores.py", request.param, tmp_path_factory.mktemp("int8"), "fsdp2", "int8")


@pytest.mark.parametrize("side", ["right", "left"])
def test_codes_of_one_step_are_those_of_one_process_and_of_twenty_nearly(found, side):
    for steps in (1, 20):
        model = codes()
        losses = train_codes(model, q_galore(model, side), rank=0, size=1, steps=steps, reducer=Whole())
        for each in found:
            weights, expected = each["int8"][f"{side} {steps}"]["weights"], model.state_dict()
            assert weights.keys() == expected.keys()
            for name, tensor in expected.items():
                assert weights[name].dtype == tensor.dtype
                if name.endswith(("codes", "scale")):
                    # Sums in another order move a rounding now and then. Mutation: random bits that are keyed by the
                    # row at hand and not by that of the whole weight.
                    share = float((weights[name] != tensor).float().mean())
                    assert share == 0 if steps == 1 else share <= 0.01, (name, share)
            assert each["int8"][f"{side} {steps}"]["losses"].tolist() == pytest.approx(losses, rel=1e-3)


def test_a_process_holds_codes_of_its_rows_and_sends_no_weight(found):
    whole = sum(one.nbytes for one in codes().state_dict().values())
    size = len(found)
    for each in found:
        # 7 and 20 rows that the processes do not divide: at most one row more of each tensor.
        assert each["int8"]["bytes"] < whole / size + 2 * 2 * 4 * (300 + 2 * 4) + 200
        assert {name: each["int8"]["planned"][name] for name in each["int8"]["counted"]} == each["int8"]["counted"]
        assert not {(7, 300), (300, 7), (16, 300)} & each["int8"]["shapes"]


def test_a_policy_that_casts_to_bfloat16_leaves_codes_and_scales_as_they_are(found):
    # Mutation: scales as float parameters, which the policy casts before they are gathered.
    for each in found:
        policy = each["int8"]["policy"]
        assert all(policy.values()), policy
        assert sum(name.endswith("_scale") for name in policy) == 6 and any(name.endswith("bias") for name in policy)


def test_an_ordinary_step_over_rows_of_codes_is_refused_in_a_sentence(found):
    for each in found:
        assert "has int8 codes of which each process holds rows" in each["int8"]["refused"]


def test_codes_as_parameters_save_and_load_as_buffers_do():
    model, other = codes(cores=False), codes(cores=False)
    before = model.state_dict()
    for module in model.modules():
        if hasattr(module, "store_as_parameters_"):
            module.store_as_parameters_()
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(before[key].dtype == after[key].dtype and torch.equal(before[key], after[key]) for key in before)
    other.load_state_dict(after)
    assert torch.equal(model(torch.arange(5)), other(torch.arange(5)))

"""Layer by layer in several processes: ranks bitwise equal, the training of one process, cores in the collectives."""

import pytest
import ranks
import torch
from layer_major_ranks import CASES, train

pytestmark = pytest.mark.slow  # two processes, 20 s of the processor


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return ranks.run("layer_major_ranks.py", 2, tmp_path_factory.mktemp("layers"))


@pytest.mark.parametrize("case", CASES)
def test_ranks_are_bitwise_equal_after_every_step(found, case):
    one, two = (each[case] for each in found)
    assert one["hashes"] == two["hashes"] and one["losses"] == two["losses"] and one["norm"] == two["norm"]


@pytest.mark.parametrize("case", ["adamw", "galore", "smollm"])
def test_uneven_rows_train_as_in_one_process(found, case):
    # Mutations: the mean of the means of the processes, a rank without labels that leaves the head alone.
    alone = train(case, slice(None))
    assert found[0][case]["losses"] == pytest.approx(alone["losses"], rel=1e-6)  # the loss is summed in float32
    for name, weight in alone["weights"].items():
        error = float((found[0][case]["weights"][name] - weight).abs().max())
        assert error <= 1e-12 * max(1.0, float(weight.abs().max())), name


def test_weights_that_wait_on_the_host_are_updated_before_they_leave(found):
    device, host = (found[0][f"galore, refreshes{where}"] for where in ("", ", host"))
    assert device["losses"] == host["losses"]
    assert all(torch.equal(host["weights"][name], one) for name, one in device["weights"].items())


@pytest.mark.parametrize("case", ["galore", "galore, refreshes"])
def test_no_whole_gradient_of_a_projected_matrix_travels(found, case):
    shapes = found[0][case]["shapes"]
    assert not shapes & {(32, 32), (48, 32), (32, 48), (16, 32)} and (6, 32) in shapes


def test_a_step_without_labels_anywhere_is_refused_everywhere(found):
    assert all("labels hold nothing but -100" in each["refused"] for each in found)

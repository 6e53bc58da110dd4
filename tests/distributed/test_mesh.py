"""Cores in place of gradients on shares of rows: the training of one process, and what is sent is what formulas say."""

import math

import pytest
import ranks
import torch
from distributed_cores import CLIPS, FEW, NAMES, STEPS, Whole, optimizer_for, stack
from distributed_fsdp2 import Stack
from shared_training import MICRO, largest_difference, train

pytestmark = pytest.mark.slow
"""Processes that import FSDP2 take ten seconds each."""
EXACT = 1e-12
"""Float64 sums in another order."""
RANK, FLOAT = 3, 8


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return ranks.run("distributed_cores.py", 2, tmp_path_factory.mktemp("cores"), "fsdp2", "trained,traffic,not_finite")


def alone(name):
    side, clip = name.split()
    model = stack()
    # Among several processes the first basis is a random one: the stand-in for their sums makes it so in one, too.
    layerwise = {**CLIPS[clip], "reducer": Whole()}
    train(model, optimizer_for(model, side), steps=STEPS, layerwise=layerwise)
    return model.state_dict()


@pytest.mark.parametrize("name", NAMES)
def test_processes_that_hold_rows_and_sum_cores_train_as_one(found, name):
    # Uneven rows, one row on two processes, refreshes, accumulation. Mutations: a sketch from the moments at hand, a
    # norm of the rows at hand, cores that are summed in place of averaged, a basis cut to rows before it is installed.
    expected = alone(name)
    for each in found:
        assert largest_difference(each["trained"][name]["values"], expected) < EXACT
        assert each["trained"][name]["gradients"] == []


def test_no_tensor_of_a_weights_size_is_in_any_collective_of_the_core_path(found):
    shapes = {tuple(one.shape) for name, one in Stack().named_parameters() if _is_projected(name, one)}
    for name in NAMES:
        assert not shapes & found[0]["trained"][name]["shapes"]


def _is_projected(name, parameter):
    return parameter.ndim == 2 and name.startswith(("layers", "odd", "even"))


def test_traffic_of_a_step_is_what_the_formula_says(found):
    # (W-1)/W of a reduce-scatter of cores, in rows that W divides, and twice that of an all-reduce behind left bases.
    weights = {name: tuple(one.shape) for name, one in Stack().named_parameters()}
    matrices = [tuple(one.shape) for name, one in Stack().named_parameters() if _is_projected(name, one)]
    others = [tuple(one.shape) for name, one in Stack().named_parameters() if not _is_projected(name, one)]
    passes = -(-MICRO // 2)

    def even(shape):
        return 2 * math.ceil(shape[0] / 2) * math.prod(shape[1:])

    gathered = 2 * passes * FLOAT * sum(map(even, weights.values()))  # forward and backward of every pass
    summed = passes * FLOAT * sum(map(even, others))
    rows = FLOAT * sum(2 * math.ceil(m / 2) * RANK for m, _ in matrices)
    columns = FLOAT * sum(2 * math.ceil(n / 2) * RANK for _, n in matrices)
    for each in found:
        for side, sent in each["traffic"].items():
            for step in (1, 2, 3):
                engine = sent[step]["weights and gradients by FSDP2"]
                assert engine["all_gather"] == gathered and engine["reduce_scatter"] == summed
            quiet = sent[2]
            if side == "right":
                assert quiet["cores by rows"] == {"reduce_scatter": rows, **_zero(quiet["cores by rows"])}
                assert not any(quiet["sums of all"].values())
                # Refreshes: what is remembered of the cores, by rows, and a sketch of N x R.
                due = sent[4]
                assert due["cores by rows"]["all_gather"] == rows
                assert due["sums of all"]["all_reduce"] == FLOAT * sum(n * RANK for _, n in matrices)
            else:
                # Cores summed by columns, directions gathered: together what an all-reduce would take.
                assert quiet["cores by rows"] == {"reduce_scatter": columns, "all_gather": columns}
                assert not any(quiet["sums of all"].values())


def _zero(kinds):
    return {kind: 0 for kind in kinds if kind != "reduce_scatter"}


def test_a_micro_batch_that_is_not_finite_on_one_process_is_skipped_by_all(found):
    # Mutation: a verdict of each process about its own rows.
    one, two = (each["not_finite"] for each in found)
    assert one["skipped"] == two["skipped"] > 0
    assert all(torch.equal(one["values"][key], two["values"][key]) for key in one["values"])
    assert all(bool(tensor.isfinite().all()) for tensor in one["values"].values())


@pytest.mark.parametrize(("kind", "size"), [("fsdp2", 3), ("fsdp2", 4), ("hsdp", 4)])
def test_other_numbers_of_processes_and_copies_of_shares_train_the_same(tmp_path, kind, size):
    others = ranks.run("distributed_cores.py", size, tmp_path, kind, "trained")
    for name in FEW:
        expected = alone(name)
        for each in others:
            assert largest_difference(each["trained"][name]["values"], expected) < EXACT

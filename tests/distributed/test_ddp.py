"""Replicas: bitwise equal on all ranks, equal to one process, and what travels is what the formula says."""

import pytest
import ranks
import torch
from distributed_ddp import CLIPS, SHORT
from shared_training import MICRO, STEPS, first_step, largest_difference, net, optimizer_for, train, values

import featherweight as fw
from featherweight.distributed.ddp import bit_sum, check_replicas, valued_tensors

pytestmark = pytest.mark.xdist_group("two processes")  # they find out everything once

EXACT = 1e-12
"""Float64 sums in another order; measured up to 4e-15 after 30 steps."""


@pytest.fixture
def found(two):
    """What two processes have found that hold replicas."""
    return [each["replicas"] for each in two]


def alone(kind="GaLoreAdamW", *, layerwise, core=True, begun=True, steps=SHORT, **more):
    """The same training in one process."""
    model = net()
    if core:
        fw.apply(model, fw.CoreGradient(target_modules=["up", "mid", "down"], prefer="memory"))
    optimizer = optimizer_for(model, kind)
    if begun:
        first_step(model, optimizer)
    train(model, optimizer, layerwise=layerwise, steps=steps, **more)
    return values(model)


@pytest.mark.parametrize("clip", CLIPS)
def test_ranks_are_bitwise_equal_at_every_step_and_equal_to_one_process(found, clip):
    # Mutations: a basis that a rank fits to its own gradients, a norm or a verdict of one rank alone, a mean left out.
    one, two = (each["clipped"][clip] for each in found)
    assert len(one["hashes"]) == SHORT and one["hashes"] == two["hashes"]
    assert largest_difference(one["values"], alone(layerwise=CLIPS[clip])) < EXACT


@pytest.mark.parametrize("name", ["whole", "cores"])
def test_ordinary_steps_are_those_of_one_process_whether_gradients_or_cores_travel(found, name):
    one, two = (each["ordinary"][name]["values"] for each in found)
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert largest_difference(one, alone(layerwise=None, core=False)) < EXACT


def test_cores_of_ordinary_steps_are_fewer_bytes_than_gradients(found):
    ordinary = found[0]["ordinary"]
    # Of up, mid and down 16*32, 32*32 and 32*16 elements become 4 rows or columns in nine of twelve steps or more.
    assert ordinary["cores"]["bytes"] < 0.55 * ordinary["whole"]["bytes"]


def test_the_full_rank_optimizer_is_shared_too(found):
    one, two = (each["ordinary"]["adamw"]["values"] for each in found)
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert largest_difference(one, alone("AdamW", layerwise={}, begun=False)) < EXACT


def test_the_comm_hook_gives_what_plain_ddp_gives_and_sends_cores(found):
    for each in found:
        assert largest_difference(each["hooked"]["hook"], each["hooked"]["plain"]) < EXACT
    shapes = found[0]["hooked"]["shapes"]
    assert shapes[32, 4] > 0 or shapes[4, 32] > 0
    # Two backward passes in each of eight steps, all of which DDP reduces; three matrices are due once or twice.
    whole = 16 * 8 * sum(parameter.numel() for parameter in net().parameters())
    assert found[0]["hooked"]["sent"] < 0.6 * whole


def test_a_gradient_that_is_not_finite_on_one_rank_is_skipped_on_all(found):
    # Mutation: a verdict about a rank's own gradient: then one rank would step and the other not.
    one, two = (each["not_finite"] for each in found)
    assert one["skipped"] == two["skipped"] > 0
    assert all(torch.equal(one["values"][key], two["values"][key]) for key in one["values"])
    assert all(bool(tensor.isfinite().all()) for tensor in one["values"].values())


def test_a_layer_that_one_rank_uses_alone_is_an_error_with_its_name_and_no_hang(found):
    for each in found:
        assert "has a gradient on rank 1 and none on rank 0" in each["disagreement"]["layer"]
        assert each["disagreement"]["layer"].startswith("ConfigError: distributed: 'extra.")


def test_replicas_that_have_parted_are_found(found):
    for each in found:
        assert "'mid.weight' differs between rank 0 and rank 1" in each["disagreement"]["replicas"]


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("model", "the model differs between rank 0 and rank 1"),
        ("recipe", "the recipe differs between rank 0 and rank 1"),
        ("few", "accumulation_steps=1 is below the 2 processes"),
        ("together", "rank 1: only here"),
        ("first", "rank 0: only here"),
        ("wrapped", "keeps all gradients in its buckets"),
        ("hook", "optimizer=AdamW has no cores to send"),
    ],
)
def test_what_cannot_be_is_one_sentence_on_every_rank(found, what, words):
    assert all(words in each["disagreement"][what] for each in found)


def test_the_first_rank_decides_for_all(found):
    assert [each["disagreement"]["result"] for each in found] == [{"made by": 0}] * 2


def test_traffic_of_a_step_is_what_the_formula_says(found):
    # 2 (W-1)/W b (C + E): cores of three matrices and all other trained parameters, float64.
    cores = 4 * 32 + 4 * 32 + 4 * 32  # up (32, 16) and mid (32, 32) right, down (16, 32) left
    others = 20 * 16 + 32 + 32 + 16 + 16 + 16
    for each in found:
        assert min(each["traffic"]["due"]) > 2, "a refresh in this step would send a sketch as well"
        assert each["traffic"]["bytes"] == 8 * (cores + others)
        assert each["traffic"]["wire"] == 2 * 0.5 * 8 * (cores + others)
        assert each["traffic"]["calls"] == 1
        assert not {(32, 16), (32, 32), (16, 32)} & set(each["traffic"]["shapes"])


def test_an_expert_that_one_rank_uses_is_trained_on_all_and_one_that_nobody_uses_stays(found):
    # Mutation: experts that a rank has not used are left out of what it averages.
    one, two = (each["experts"]["values"]["weight"] for each in found)
    before = found[0]["experts"]["before"]["weight"]
    assert torch.equal(one, two) and torch.equal(one[2], before[2])
    assert not torch.equal(one[0], before[0]) and not torch.equal(one[1], before[1])


@pytest.mark.slow
def test_three_ranks_are_equal_to_one_process(tmp_path):
    found = ranks.run("distributed_ddp.py", 3, tmp_path, seconds=600)
    assert MICRO % 3, "shares are unequal"
    hashes = [[each["clipped"][clip]["hashes"] for clip in CLIPS] for each in found]
    assert hashes[0] == hashes[1] == hashes[2]
    assert len({each["not_finite"]["skipped"] for each in found}) == 1
    for clip, options in CLIPS.items():
        assert largest_difference(found[0]["clipped"][clip]["values"], alone(layerwise=options, steps=STEPS)) < EXACT


def test_one_process_is_a_group_of_one():
    model = net()
    assert fw.distributed.shard(model, "ddp") is model
    check_replicas(model)
    assert fw.distributed.world_size() == 1 and fw.distributed.is_first()


def test_the_sum_of_bits_tells_tensors_apart_that_differ_in_one_bit():
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.int8, torch.bool, torch.complex64):
        tensor = torch.ones(5).to(dtype)
        other = tensor.clone()
        other[3] = 0
        assert bit_sum(tensor) == bit_sum(tensor.clone()) != bit_sum(other)
    assert bit_sum(torch.empty(0)) == 0


def test_an_int8_weight_is_shared_by_codes_and_scales_and_not_by_its_handle():
    model = torch.nn.Sequential(torch.nn.Linear(8, 8))
    fw.apply(model, fw.Int8())
    assert {name for name, _ in valued_tensors(model)} == {"0.bias", "0.weight_codes", "0.weight_scale"}

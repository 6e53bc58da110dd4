"""Lazy refresh: intervals follow the motion of the subspace."""

import pytest
import torch

from featherweight.errors import ConfigError
from featherweight.linalg.random import keyed_generator, random_orthonormal
from featherweight.linalg.subspace import MatrixSubspace
from featherweight.optim import GaLoreAdamW, LazyRefresh, QGaLoreAdamW
from featherweight.optim.policies.lazy import OFFICIAL, lazy_options, next_gap, similarity_of


def refreshes(lazy, gap, steps, similarity):
    """Count refreshes as the optimizer schedules them, without the arithmetic of the steps between."""
    from featherweight.optim.policies.refresh import next_refresh

    options, current, queue, count, step = lazy_options(lazy), gap, [], 0, 0
    while step < steps:
        if count:
            queue = [*queue, similarity][-options["queue_size"] :]
            current, is_cleared = next_gap(current, queue, gap, options)
            queue = [] if is_cleared else queue
        count += 1
        step = next_refresh(step, (0, 1), current, stagger=True, early=False)
    return count


@pytest.mark.parametrize(
    ("lazy", "gap", "steps", "similarity", "expected"),
    [
        (OFFICIAL, 200, 20_000, 1.0, 11),  # the queue stays full: doubles at every refresh
        (LazyRefresh(), 200, 20_000, 1.0, 23),
        (OFFICIAL, 500, 150_000, 1.0, 13),
        (LazyRefresh(), 500, 150_000, 1.0, 31),
        (LazyRefresh(), 200, 20_000, 0.0, 100),  # nothing stands still: never longer
        (LazyRefresh(max_gap=400), 200, 20_000, 1.0, 53),  # 6 at 200, then every 400 from 1200 on
    ],
)
def test_refreshes_are_as_many_as_the_rule_says(lazy, gap, steps, similarity, expected):
    assert refreshes(lazy, gap, steps, similarity) == expected


def train(lazy, *, gradient, steps, rank=4, shape=(16, 24), state=None, start=0, basis_method="svd", **options):
    # An exact basis: one warm iteration on noise stays near the old basis, and noise would look as if it stood still.
    options["basis_method"] = basis_method
    parameter = torch.nn.Parameter(torch.zeros(shape))
    optimizer = GaLoreAdamW([{"params": [parameter], "rank": rank}], lr=1e-3, update_proj_gap=2, lazy=lazy, **options)
    if state is not None:
        optimizer.load_state_dict(state)
    for step in range(start, start + steps):
        parameter.grad = gradient(step)
        optimizer.step()
    return optimizer, optimizer.state[parameter]


def stable(step):
    left = random_orthonormal(16, 4, generator=keyed_generator(1))
    return left @ torch.randn(4, 24, generator=keyed_generator(2, step))


def unstable(step):
    return torch.randn(16, 24, generator=keyed_generator(3, step))


def test_a_stable_subspace_is_refreshed_less_and_less_often_and_an_unstable_one_is_not():
    _, state = train(True, gradient=stable, steps=100)
    # At 0, 2, ..., 10; every 4 from 12 to 28, every 8 from 32 to 64, every 16 from 80 on.
    assert int(state["refresh_count"]) == 6 + 5 + 5 + 2
    assert int(state["refresh_gap"]) == 16
    # The threshold of 0.4 is far above what chance gives.
    _, state = train(True, gradient=unstable, steps=100)
    assert int(state["refresh_count"]) == 50


def test_an_interval_shrinks_again_when_the_subspace_moves():
    _, state = train(True, gradient=lambda step: stable(step) if step < 40 else unstable(step), steps=40)
    longest = int(state["refresh_gap"])
    _, state = train(True, gradient=lambda step: stable(step) if step < 40 else unstable(step), steps=120)
    assert longest == 8 and int(state["refresh_gap"]) == 2


@pytest.mark.parametrize("bits", [32, 4])
@pytest.mark.parametrize("proj_type", ["std", "full"])
def test_resume_between_lazy_refreshes_is_bitwise_identical(bits, proj_type):
    options = {"gradient": stable, "basis_bits": bits, "proj_type": proj_type}
    _, whole = train(True, steps=50, **options)
    optimizer, _ = train(True, steps=33, **options)
    _, resumed = train(True, steps=17, state=optimizer.state_dict(), start=33, **options)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_similarity_does_not_see_signs_and_rotations_and_is_zero_for_chance():
    generator = keyed_generator(5)
    basis = random_orthonormal(40, 6, generator=generator, dtype=torch.float64)
    rotation = random_orthonormal(6, 6, generator=generator, dtype=torch.float64)
    old = MatrixSubspace(left=basis)
    assert similarity_of(MatrixSubspace(left=basis @ rotation), old, "overlap") == pytest.approx(1, abs=1e-12)
    flipped = MatrixSubspace(left=-basis)
    assert similarity_of(flipped, old, "first_vector") == pytest.approx(1, abs=1e-12)
    assert similarity_of(flipped, old, "overlap") == pytest.approx(1, abs=1e-12)
    draws = [
        (
            MatrixSubspace(left=random_orthonormal(400, 40, generator=generator)),
            MatrixSubspace(left=random_orthonormal(400, 40, generator=generator)),
        )
        for _ in range(20)
    ]
    # ||P'^T P||^2 / R is R / M = 0.1 in the mean, +- 0.003 for one draw; the rest is what max(0, .) cuts off.
    assert sum(similarity_of(*pair, "overlap") for pair in draws) / 20 < 0.01


def test_the_state_grows_by_two_counters_and_the_queue_and_state_bytes_counts_them():
    weight = torch.nn.Parameter(torch.ones(32, 64))
    plain = GaLoreAdamW([{"params": [weight], "rank": 4}], lr=1e-3)
    lazy = GaLoreAdamW([{"params": [weight], "rank": 4}], lr=1e-3, lazy=LazyRefresh(queue_size=3))
    assert lazy.state_bytes() - plain.state_bytes() == 2 * 8 + 3 * 4
    weight.grad = torch.ones(32, 64)
    lazy.step()
    assert sum(tensor.nbytes for tensor in lazy.state[weight].values()) == lazy.state_bytes()


def test_stacked_experts_have_intervals_of_their_own():
    def gradient(step):
        return torch.stack([stable(step), unstable(step)])

    _, state = train(True, gradient=gradient, steps=60, shape=(2, 16, 24))
    assert state["refresh_gap"].tolist()[0] >= 8 and state["refresh_gap"].tolist()[1] <= 2


@pytest.mark.parametrize("value", ["yes", 3, {"threshold": 2.0}, {"treshold": 0.4}])
def test_wrong_options_are_refused(value):
    parameter = torch.nn.Parameter(torch.zeros(8, 8))
    with pytest.raises(ConfigError, match="lazy"):
        GaLoreAdamW([{"params": [parameter], "rank": 2}], lazy=value)
    with pytest.raises(ConfigError, match="lazy"):
        GaLoreAdamW([{"params": [parameter], "rank": 2, "lazy": value}])


def test_a_random_basis_is_refused():
    parameter = torch.nn.Parameter(torch.zeros(8, 8))
    with pytest.raises(ConfigError, match="lazy"):
        GaLoreAdamW([{"params": [parameter], "rank": 2}], lazy=True, basis_method="random")


def test_the_report_counts_refreshes_and_says_how_long_gaps_are():
    optimizer, _ = train(True, gradient=stable, steps=100)
    assert "longest gap (steps)" in str(optimizer.report()) and "16" in str(optimizer.report())


def test_q_galore_packs_two_codes_to_a_byte_and_is_lazy():
    parameter = torch.nn.Parameter(torch.zeros(512, 1024))
    optimizer = QGaLoreAdamW([{"params": [parameter], "rank": 64}], lr=1e-3)
    parameter.grad = torch.randn(512, 1024, generator=keyed_generator(1))
    optimizer.step()
    state = optimizer.state[parameter]
    assert state["basis_left_codes"].dtype == torch.uint8 and state["basis_left_codes"].numel() == 512 * 64 // 2
    assert state["exp_avg_codes"].numel() == 64 * 1024 and "similarities" in state

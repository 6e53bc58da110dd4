"""When a matrix refreshes, and the random subspaces that a seed gives."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from featherweight.errors import ConfigError
from featherweight.linalg.random import keyed_generator
from featherweight.optim import GaLoreAdamW
from featherweight.optim.policies.refresh import (
    EARLY_STEPS,
    cheaper_side,
    choose_side,
    draw_subspace,
    fit_subspace,
    next_refresh,
)


def refresh_steps(turn, gap, steps, *, stagger=True, early=False):
    """Return the steps in [0, steps) at which a matrix refreshes, its first one at 0 included."""
    due = [0]
    while (following := next_refresh(due[-1], turn, gap, stagger=stagger, early=early)) < steps:
        assert following > due[-1]  # never twice at one step
        due.append(following)
    return due


class TestSchedule:
    def test_without_stagger_every_matrix_refreshes_at_the_multiples_of_the_gap(self):
        for index in range(7):
            assert refresh_steps((index, 7), 25, 1000, stagger=False) == list(range(0, 1000, 25))

    @pytest.mark.parametrize("gap", [1, 2, 7, 50, 200])
    @pytest.mark.parametrize("count", [1, 3, 7, 60, 224])
    def test_with_stagger_the_refreshes_are_exact_in_number_and_spread_evenly(self, gap, count):
        gaps = 5
        per_step = Counter()
        for index in range(count):
            due = refresh_steps((index, count), gap, gap * gaps + 1)
            # After its first one a matrix refreshes in every window of `gap` steps, at the same place of it.
            assert len(due) == 1 + gaps
            assert len({step % gap for step in due[1:]}) == 1
            per_step.update(due[1:])
        assert sum(per_step.values()) == count * gaps
        assert max(per_step.values()) == -(-count // gap)  # the fewest that are possible
        busy = [per_step[step] for step in range(1, gap * gaps + 1)]
        for window in range(0, len(busy) - gap + 1):
            assert sum(busy[window : window + gap]) == count

    def test_neighbours_are_as_far_apart_as_possible(self):
        due = sorted(step for index in range(8) for step in refresh_steps((index, 8), 200, 201)[1:])
        assert {b - a for a, b in zip(due, due[1:], strict=False)} == {25}

    @pytest.mark.parametrize("stagger", [True, False])
    def test_early_steps_come_within_the_first_gap_and_leave_the_regular_refreshes_where_they_are(self, stagger):
        first = refresh_steps((0, 4), 200, 1001, stagger=stagger, early=True)
        assert first == [0, *EARLY_STEPS, 200, 400, 600, 800, 1000]
        for index in range(4):
            early = refresh_steps((index, 4), 200, 2000, stagger=stagger, early=True)
            regular = refresh_steps((index, 4), 200, 2000, stagger=stagger)
            assert set(regular) <= set(early)
            assert all(0 < step < 200 for step in set(early) - set(regular))
            assert len(early) == len(regular) + len(EARLY_STEPS)

    def test_early_steps_of_several_matrices_are_spread_too(self):
        per_step = Counter(
            step for index in range(10) for step in refresh_steps((index, 10), 2000, 2000, early=True)[1:]
        )
        # Ten early refreshes between two of the early steps, which are ten steps apart at least.
        assert max(per_step[step] for step in range(1, 101)) == 1

    @pytest.mark.parametrize("gap", [3, 10, 11, 60])
    def test_a_gap_below_the_early_steps_drops_those_beyond_it(self, gap):
        assert refresh_steps((0, 1), gap, gap + 1, early=True) == [0, *(s for s in EARLY_STEPS if s < gap), gap]

    @settings(deadline=None, max_examples=150, derandomize=True)
    @given(
        gap=st.integers(1, 400),
        count=st.integers(1, 300),
        position=st.floats(0, 1, exclude_max=True),
        stagger=st.booleans(),
        early=st.booleans(),
    )
    def test_every_matrix_refreshes_at_least_once_a_gap_and_never_twice_a_step(
        self, gap, count, position, stagger, early
    ):
        turn = (int(position * count), count)
        due = refresh_steps(turn, gap, 3 * gap + 120, stagger=stagger, early=early)
        distances = [b - a for a, b in zip(due, due[1:], strict=False)]
        assert all(0 < distance <= gap for distance in distances)
        assert due[-1] + gap >= 3 * gap + 120

    @settings(deadline=None, max_examples=100, derandomize=True)
    @given(
        gaps=st.lists(st.integers(1, 60), min_size=2, max_size=6),
        count=st.integers(1, 40),
        position=st.floats(0, 1, exclude_max=True),
    )
    def test_a_gap_that_changes_holds_from_the_next_refresh_on(self, gaps, count, position):
        turn, step = (int(position * count), count), 0
        for gap in gaps:
            for _ in range(3):
                following = next_refresh(step, turn, gap, stagger=True, early=False)
                assert 0 < following - step <= gap
                step = following

    @settings(deadline=None, max_examples=100, derandomize=True)
    @given(step=st.integers(0, 10**9), gap=st.integers(1, 10**4), index=st.integers(0, 99), early=st.booleans())
    def test_the_next_refresh_is_the_first_step_of_the_matrix_after_this_one(self, step, gap, index, early):
        following = next_refresh(step, (index, 100), gap, stagger=True, early=early)
        if step >= max(gap, EARLY_STEPS[-1]):
            assert (following + index * gap // 100) % gap == 0 and following - step <= gap
        for between in {step, (step + following) // 2, following - 1}:
            assert next_refresh(between, (index, 100), gap, stagger=True, early=early) == following

    def test_the_optimizer_keeps_the_schedule_and_takes_a_new_gap_at_the_next_refresh(self):
        weights = [nn.Parameter(torch.zeros(4, 6)) for _ in range(4)]
        optimizer = GaLoreAdamW([{"params": weights, "rank": 2}], update_proj_gap=8, early_refresh=False)
        seen = {index: [] for index in range(4)}
        counts = [0] * 4
        for step in range(24):
            if step == 10:
                optimizer.param_groups[0]["update_proj_gap"] = 4
            for weight in weights:
                weight.grad = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
            optimizer.step()
            for index, weight in enumerate(weights):
                count = int(optimizer.state[weight]["refresh_count"])
                assert count - counts[index] in (0, 1)
                if count > counts[index]:
                    seen[index].append(step)
                counts[index] = count
        # Matrix i of 4: at -2 i modulo 8, from the first of these after step 10 on at -i modulo 4.
        assert seen == {
            0: [0, 8, 16, 20],
            1: [0, 6, 14, 15, 19, 23],
            2: [0, 4, 12, 14, 18, 22],
            3: [0, 2, 10, 13, 17, 21],
        }

    def test_a_zero_gradient_refreshes_nothing_and_the_refresh_stays_due(self):
        weight = nn.Parameter(torch.zeros(4, 6))
        optimizer = GaLoreAdamW([{"params": [weight], "rank": 2}], update_proj_gap=3)
        counts = []
        for step in range(7):
            weight.grad = torch.zeros(4, 6) if step in (3, 4) else torch.ones(4, 6)
            optimizer.step()
            counts.append(int(optimizer.state[weight]["refresh_count"]))
        assert counts == [1, 1, 1, 1, 1, 2, 3]


class TestSides:
    def test_std_takes_the_smaller_side_and_the_right_one_of_a_square(self):
        assert [choose_side(*shape, "std") for shape in ((4, 9), (9, 4), (5, 5))] == ["left", "right", "right"]
        assert [choose_side(*shape, "reverse_std") for shape in ((4, 9), (9, 4), (5, 5))] == ["right", "left", "left"]
        assert [choose_side(4, 9, kind) for kind in ("left", "right", "full", "min_memory")] == [
            "left", "right", "both", "left",
        ]  # fmt: skip
        with pytest.raises(ConfigError, match="proj_type='stdd' is unknown.*Did you mean 'std'"):
            choose_side(4, 9, "stdd")

    def test_the_cheaper_side_is_the_other_one_or_none(self):
        assert cheaper_side("left", 10, 9) == "right" and cheaper_side("right", 9, 10) == "left"
        assert cheaper_side("left", 9, 10) is None and cheaper_side("left", 9, 9) is None

    @pytest.mark.parametrize("side", ["left", "right", "both"])
    def test_an_exact_fit_holds_the_strongest_directions_of_its_side(self, side, generator):
        grad = torch.randn(9, 7, generator=generator, dtype=torch.float64)
        subspace = fit_subspace(grad, side, 3, "svd", old=None, generator=generator)
        left, _, right = torch.linalg.svd(grad, full_matrices=False)
        for name, basis, expected in (("left", subspace.left, left), ("right", subspace.right, right.T)):
            if side in (name, "both"):
                torch.testing.assert_close(basis @ basis.T, expected[:, :3] @ expected[:, :3].T, rtol=0, atol=1e-12)
            else:
                assert basis is None


class TestDraws:
    @staticmethod
    def draw(method, side="left", keys=(0, 1, 2), shape=(40, 30), rank=4):
        return draw_subspace(
            method, side, *shape, rank, generator=keyed_generator(*keys), dtype=torch.float64,
            device=torch.device("cpu"),
        )  # fmt: skip

    @pytest.mark.parametrize("method", ["random", "gaussian"])
    def test_equal_keys_give_equal_subspaces_and_every_other_key_another(self, method):
        keys = [(0, 1, 2), (1, 1, 2), (0, 2, 2), (0, 1, 3), (0, 2, 1)]
        draws = [self.draw(method, keys=each).left for each in keys]
        for one, each in zip(draws, keys, strict=True):
            assert torch.equal(one, self.draw(method, keys=each).left)
        assert len({tuple(one.flatten().tolist()) for one in draws}) == len(keys)

    @pytest.mark.parametrize("method", ["random", "gaussian"])
    def test_two_sides_are_drawn_one_after_the_other_with_their_own_shapes(self, method):
        both = self.draw(method, "both")
        assert both.left.shape == (40, 4) and both.right.shape == (30, 4)
        assert not torch.equal(both.left[:30], both.right)
        assert self.draw(method, "right").right.shape == (30, 4)

    def test_random_bases_are_orthonormal_and_gaussian_ones_are_not(self):
        eye = torch.eye(4, dtype=torch.float64)
        basis = self.draw("random").left
        torch.testing.assert_close(basis.T @ basis, eye, rtol=0, atol=1e-12)
        other = self.draw("gaussian").left
        assert (other.T @ other - 10 * eye).norm() < 10  # 40 rows of variance 1 / 4
        assert (other.T @ other - eye).norm() > 1

    def test_random_bases_favour_no_direction(self):
        # E[P P^T] = R / M: every diagonal entry has mean 4 / 40, and a variance below that of one chi-squared sum.
        draws = 300
        shares = torch.stack([self.draw("random", keys=(count,)).left.square().sum(dim=1) for count in range(draws)])
        error = shares.std(dim=0) / draws**0.5
        assert ((shares.mean(dim=0) - 0.1).abs() < 4.5 * error).all()  # 40 comparisons

    @pytest.mark.parametrize("method", ["random", "gaussian"])
    @pytest.mark.parametrize("proj_type", ["left", "right", "full"])
    def test_they_cost_no_state(self, method, proj_type):
        weight = nn.Parameter(torch.zeros(10, 14))
        optimizer = GaLoreAdamW(
            [{"params": [weight], "rank": 3, "proj_type": proj_type}], basis_method=method, moment_policy="keep"
        )
        predicted = optimizer.state_bytes()
        weight.grad = torch.ones(10, 14)
        optimizer.step()
        state = optimizer.state[weight]
        core = {"left": 3 * 14, "right": 10 * 3, "full": 9}[proj_type]
        assert predicted == sum(tensor.nbytes for tensor in state.values()) == 2 * 4 * core + 5 * 8
        assert not [name for name in state if "basis" in name]

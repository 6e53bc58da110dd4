"""APOLLO against a slow twin and against apollo-torch 1.0.3, and its projections that are never stored.

Where ours and apollo-torch must differ, it is so by choice, and the tests say how they are made equal:
- its eps acts before bias correction, and its decay comes after the update (our options `eps_mode`, `decay_order`);
- its limit of growth sees the update before bias correction; with betas of 0 there is nothing to correct, and without
  the limit there is no difference;
- it draws its projections from one running seed (ours are given to it), and refreshes all matrices in the same step.
"""

import math

import pytest
import torch
from low_rank_twins import Apollo as ApolloTwin
from low_rank_twins import assert_follows, gradients, is_left, svd_basis
from torch import nn

from featherweight.errors import ConfigError
from featherweight.linalg.random import keyed_generator
from featherweight.optim import Apollo, ApolloMini

SHAPES = [(7, 11), (11, 7), (8, 8)]
PRESETS = [(Apollo, True, 3, 1.0), (Apollo, True, 2, 4.0), (ApolloMini, False, 1, 128.0)]
OPTIONS = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.1}


def gaussian(length, rank, count, seed=0, index=0):
    """Return projection number `count` (from 1) of the parameter number `index`, elements of variance 1 / R."""
    generator = keyed_generator(seed, index, 0, count)
    return torch.randn(length, rank, generator=generator, dtype=torch.float64) / math.sqrt(rank)


def start_of(shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def present_projection(optimizer, weight):
    (matrix,) = optimizer.step_of(weight).matrices(optimizer.member(weight, optimizer.param_groups[0]))
    subspace = matrix.subspace()
    return subspace.left if subspace.left is not None else subspace.right


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("proj_type", ["std", "reverse_std"])
@pytest.mark.parametrize(("preset", "by_channel", "rank", "scale"), PRESETS)
def test_steps_over_new_projections_equal_the_twin(shape, proj_type, preset, by_channel, rank, scale):
    left, start = is_left(shape, proj_type), start_of(shape)
    weight = nn.Parameter(start.clone())
    group = {"params": [weight], "rank": rank, "proj_type": proj_type}
    optimizer = preset([group], update_proj_gap=4, scale=scale, seed=5, **OPTIONS)
    length = shape[0] if left else shape[1]
    twin = ApolloTwin(
        start if left else start.T, lambda count, grad: gaussian(length, rank, count, seed=5), 4, by_channel,
        scale=scale, **OPTIONS,
    )  # fmt: skip
    # The last norm is stored in float32 (6e-8), and the growth is limited at some steps. Mutations: scale for its root,
    # a missing bias correction, a factor over the wrong axis, decay times scale: differences of 1e-2 and more.
    assert_follows(optimizer, weight, twin, gradients(shape, 10, seed=2), left, rtol=1e-6)
    assert 0 < twin.limit.times_reached < 9


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("preset", [Apollo, ApolloMini])
def test_svd_projections_equal_the_twin_and_are_stored(shape, preset):
    left, start = is_left(shape, "std"), start_of(shape)
    weight = nn.Parameter(start.clone())
    optimizer = preset([{"params": [weight], "rank": 2}], basis_method="svd", update_proj_gap=4, scale=9.0, **OPTIONS)
    twin = ApolloTwin(
        start if left else start.T, lambda count, grad: svd_basis(grad, 2), 4, preset is Apollo, scale=9.0, **OPTIONS
    )
    assert_follows(optimizer, weight, twin, gradients(shape, 10, seed=2), left, rtol=1e-6)
    state = optimizer.state[weight]
    basis = state["basis_left" if left else "basis_right"]
    torch.testing.assert_close(basis, twin.projection, rtol=0, atol=1e-10)


@pytest.mark.parametrize("preset", [Apollo, ApolloMini])
def test_the_norm_of_the_update_grows_by_one_percent_at_most(preset):
    weight = nn.Parameter(torch.zeros(9, 14, dtype=torch.float64))
    optimizer = preset([{"params": [weight], "rank": 2}], lr=1.0, scale=1.0, update_proj_gap=2)
    norms = []
    for grad in gradients((9, 14), 30, seed=4):
        before = weight.detach().clone()
        weight.grad = grad
        optimizer.step()
        norms.append((weight.detach() - before).norm().item())
    growth = [b / a for a, b in zip(norms, norms[1:], strict=False)]
    # The last norm is stored in float32.
    assert max(growth) == pytest.approx(1.01, rel=1e-6)
    assert min(growth) < 1.0


def test_a_larger_gradient_moves_the_weight_no_further():
    # Adam's factor falls as the gradient grows, so that lr alone sets the length of a step.
    results = []
    for size in (1.0, 1000.0):
        weight = nn.Parameter(torch.zeros(9, 14, dtype=torch.float64))
        optimizer = Apollo([{"params": [weight], "rank": 3}], lr=0.01, eps=0.0)
        for grad in gradients((9, 14), 4):
            weight.grad = size * grad
            optimizer.step()
        results.append(weight.detach())
    torch.testing.assert_close(*results, rtol=1e-6, atol=0)  # 1e-8 beside the norms, 4e-9 relative; float32 last norm


class TestProjections:
    def test_elements_have_mean_zero_and_variance_one_over_rank(self):
        rank, length, draws = 4, 400, 12
        weight = nn.Parameter(torch.zeros(length, length + 1, dtype=torch.float64))
        optimizer = Apollo([{"params": [weight], "rank": rank}])
        optimizer.create_state(weight)
        elements = []
        for count in range(1, draws + 1):
            optimizer.state[weight]["refresh_count"].fill_(count)
            elements.append(present_projection(optimizer, weight).flatten() * math.sqrt(rank))
        values = torch.cat(elements)
        # Standard errors of mean, second and fourth moment of n standard normal numbers; 4 of them.
        count = values.numel()
        assert abs(values.mean()) < 4 / math.sqrt(count)
        assert abs(values.square().mean() - 1) < 4 * math.sqrt(2 / count)
        assert abs((values**4).mean() - 3) < 4 * math.sqrt(96 / count)

    def test_a_projection_keeps_squared_norms_in_expectation(self):
        generator = torch.Generator().manual_seed(0)
        grad = torch.randn(30, 5, generator=generator, dtype=torch.float64)
        ratios = [
            (gaussian(30, 6, count).T @ grad).square().sum() / grad.square().sum() for count in range(1, 501)
        ]  # fmt: skip
        ratios = torch.stack(ratios)
        assert abs(ratios.mean() - 1) < 4 * ratios.std() / math.sqrt(len(ratios))

    @pytest.mark.parametrize("preset", [Apollo, ApolloMini])
    def test_it_changes_at_the_gap_and_only_there(self, preset):
        weight = nn.Parameter(torch.zeros(6, 10, dtype=torch.float64))
        optimizer = preset([{"params": [weight], "rank": 2}], update_proj_gap=5, seed=3)
        seen = []
        for grad in gradients((6, 10), 16):
            weight.grad = grad
            optimizer.step()
            seen.append(present_projection(optimizer, weight))
        for step, projection in enumerate(seen):
            torch.testing.assert_close(projection, gaussian(6, 2, 1 + step // 5, seed=3), rtol=1e-14, atol=0)
        assert len({tuple(projection.flatten().tolist()) for projection in seen}) == 4

    def test_every_matrix_draw_and_seed_has_its_own(self):
        draws = set()
        for seed in (0, 1):
            weights = [nn.Parameter(torch.zeros(6, 10, dtype=torch.float64)) for _ in range(3)]
            weights.append(nn.Parameter(torch.zeros(2, 6, 10, dtype=torch.float64)))
            optimizer = Apollo([{"params": weights, "rank": 2}], seed=seed)
            for weight in weights:
                optimizer.create_state(weight)
                for count in (1, 2):
                    optimizer.state[weight]["refresh_count"].fill_(count)
                    matrices = optimizer.step_of(weight).matrices(optimizer.member(weight, optimizer.param_groups[0]))
                    draws |= {tuple(matrix.subspace().left.flatten().tolist()) for matrix in matrices}
        assert len(draws) == 2 * 2 * 5

    @pytest.mark.parametrize("method", ["gaussian", "random"])
    def test_the_state_holds_no_basis(self, method):
        weight = nn.Parameter(torch.zeros(10, 16))
        optimizer = Apollo([{"params": [weight], "rank": 3}], basis_method=method)
        predicted = optimizer.state_bytes()
        weight.grad = torch.ones(10, 16)
        optimizer.step()
        state = optimizer.state[weight]
        assert not [name for name in state if "basis" in name]
        assert predicted == sum(tensor.nbytes for tensor in state.values()) == 2 * 3 * 16 * 4 + 5 * 8 + 4

    def test_moments_cannot_be_rotated_between_projections_that_are_not_orthonormal(self):
        with pytest.raises(ConfigError, match="moment_policy='rotate' is not allowed"):
            Apollo([nn.Parameter(torch.ones(6, 8))], rank=2, moment_policy="rotate")


class TestApolloTorch:
    """Equality with apollo-torch 1.0.3, which gets our projections."""

    @staticmethod
    def run_both(monkeypatch, shape, proj_type, preset, rank, *, betas, limited, steps=12, gap=5):
        official = pytest.importorskip("apollo_torch", exc_type=ImportError)
        left, start = is_left(shape, proj_type), start_of(shape)
        scale = 9.0
        keys = {"rank": rank, "update_proj_gap": gap, "scale": scale, "proj_type": proj_type}
        ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
        more = {"eps_mode": "official", "decay_order": "after"}
        options = {"lr": 0.01, "betas": betas, "eps": 1e-6, "weight_decay": 0.1}
        optimizer = preset([{"params": [ours], **keys, **more}], **options)
        scale_type = "channel" if preset is Apollo else "tensor"
        reference = official.APOLLOAdamW(
            [{"params": [theirs], "proj": "random", "scale_type": scale_type, **keys}],
            disable_nl=not limited, **options,
        )  # fmt: skip
        count = 0

        def our_projection(self, grad, rank, type, seed):
            nonlocal count
            count += 1
            assert type == ("left" if left else "right")
            projection = gaussian(grad.shape[0] if left else grad.shape[1], rank, count)
            return projection if left else projection.T

        projector = official.random_projector.GradientProjector
        monkeypatch.setattr(projector, "get_orthogonal_matrix", our_projection)
        if not limited:
            monkeypatch.setattr("featherweight.optim.policies.residual.MAX_GROWTH", 1e9)
        for grad in gradients(shape, steps, seed=6):
            for weight, stepped in ((ours, optimizer), (theirs, reference)):
                weight.grad = grad.clone()
                stepped.step()
        assert count == math.ceil(steps / gap)
        assert (ours - start).norm() > 0.1  # far more than the tolerances
        return ours.detach(), theirs.detach()

    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize(("preset", "rank"), [(Apollo, 3), (ApolloMini, 1)])
    def test_without_limit_the_steps_are_equal(self, monkeypatch, shape, preset, rank):
        ours, theirs = self.run_both(monkeypatch, shape, "std", preset, rank, betas=(0.9, 0.99), limited=False)
        # Only the order of the factors differs: rounding of float64.
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)

    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize(("preset", "rank"), [(Apollo, 3), (ApolloMini, 1)])
    def test_with_limit_the_steps_are_equal_where_no_bias_is_corrected(self, monkeypatch, shape, preset, rank):
        ours, theirs = self.run_both(monkeypatch, shape, "std", preset, rank, betas=(0.0, 0.0), limited=True)
        # 1e-8 beside the norms of apollo-torch's limit, and our last norm in float32.
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)

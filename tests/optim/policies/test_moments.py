"""What a refresh does to the moments."""

import pytest
import torch

from featherweight.optim import GaLoreAdamW
from featherweight.optim.policies.moments import keep, reset, rotate

BETAS = (0.9, 0.999)


def moments(rows, columns, seed=0):
    generator = torch.Generator().manual_seed(seed)
    exp_avg = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    spread = torch.rand(rows, columns, generator=generator, dtype=torch.float64)
    # A second moment is at least the square of the first (bias-corrected), as with real gradients.
    step = 7
    exp_avg_sq = (1 - BETAS[1] ** step) * ((exp_avg / (1 - BETAS[0] ** step)) ** 2 + spread)
    return {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}, step


def orthogonal(size, seed):
    matrix = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(matrix)[0]


@pytest.mark.parametrize("sides", ["left", "right", "both"])
def test_identity_overlap_leaves_the_moments_unchanged(sides):
    values, step = moments(4, 4)
    before = {name: value.clone() for name, value in values.items()}
    eye = torch.eye(4, dtype=torch.float64)
    overlap = (eye if sides != "right" else None, eye if sides != "left" else None)
    assert rotate(values, overlap, step, BETAS) == step
    for name in values:
        torch.testing.assert_close(values[name], before[name], rtol=1e-12, atol=1e-14)


def test_orthogonal_overlap_preserves_the_norm_of_the_first_moment():
    values, step = moments(5, 9)
    norm = values["exp_avg"].norm()
    rotate(values, (orthogonal(5, 1), orthogonal(9, 2)), step, BETAS)
    torch.testing.assert_close(values["exp_avg"].norm(), norm, rtol=1e-12, atol=0)


def test_second_moment_stays_non_negative_whatever_the_overlap():
    values, step = moments(6, 8)
    values["exp_avg_sq"].mul_(0.01)  # below the square of the first: the variance estimate is negative
    rotate(
        values, (torch.randn(6, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64), None), step, BETAS
    )
    assert (values["exp_avg_sq"] >= 0).all()


def test_permuted_basis_permutes_the_moments_exactly():
    values, step = moments(4, 6)
    before = {name: value.clone() for name, value in values.items()}
    order = torch.tensor([2, 0, 3, 1])
    rotate(values, (torch.eye(4, dtype=torch.float64)[order], None), step, BETAS)
    for name in values:
        torch.testing.assert_close(values[name], before[name][order], rtol=1e-12, atol=1e-14)


def test_keep_changes_nothing_and_reset_starts_the_step_count_again():
    values, step = moments(3, 3)
    before = values["exp_avg"].clone()
    assert keep(values, (None, None), step, BETAS) == step
    assert torch.equal(values["exp_avg"], before)
    assert reset(values, (None, None), step, BETAS) == 0
    assert not values["exp_avg"].any() and not values["exp_avg_sq"].any()


@pytest.mark.parametrize(
    ("options", "tolerance"), [({}, 1e-12), ({"basis_bits": 16}, 1e-12), ({"state_bits": 8}, 0.03)]
)
@pytest.mark.parametrize("shape", [(12, 600), (600, 12)])
def test_a_refresh_rotates_the_moments_of_the_optimizer(options, tolerance, shape):
    # The optimizer's own state before and after a refresh. Mutation: an old basis that is an alias of the new one, as a
    # dense storage returns it, makes every rotation an identity.
    weight = torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64))
    groups = [{"params": [weight], "rank": 8, "update_proj_gap": 2}]
    optimizer = GaLoreAdamW(groups, lr=0.1, stagger=False, basis_method="svd", **options)
    layout = optimizer.layouts[weight]
    name = f"basis_{layout.side}"
    generator = torch.Generator().manual_seed(0)

    def bases():
        parts = {k.removeprefix(name).lstrip("_"): v for k, v in optimizer.state[weight].items() if k.startswith(name)}
        return layout.basis.read(parts, layout.basis_shapes()[name]).double().clone()

    def moment():
        parts = {
            k.removeprefix("exp_avg").lstrip("_"): v
            for k, v in optimizer.state[weight].items()
            if k.startswith("exp_avg") and "sq" not in k
        }
        return layout.moments["exp_avg"].read(parts, layout.moment_shapes["exp_avg"]).double().clone()

    for step in range(3):
        if step == 2:
            old, before = bases(), moment()
        weight.grad = torch.randn(shape, generator=generator, dtype=torch.float64)
        optimizer.step()
    overlap = bases().T @ old
    core = bases().T @ weight.grad if layout.side == "left" else weight.grad @ bases()
    rotated = overlap @ before if layout.side == "left" else before @ overlap.T
    expected = 0.9 * rotated + 0.1 * core
    assert (moment() - expected).norm() <= tolerance * expected.norm()
    assert (overlap - torch.eye(8)).norm() > 0.5

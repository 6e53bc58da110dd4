"""A residual without state that moves every direction at one size."""

import pytest
import torch
from torch import nn

from featherweight.errors import ConfigError
from featherweight.optim import AdamW, GaLoreAdamW, TensorGaLoreAdamW, TensorGRaD, layerwise
from featherweight.optim.policies.equalized import equalize_

SHAPE = (10, 8, 5, 4)


def normal(*shape, seed=0, dtype=torch.complex128):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def stepped(optimizer_type, grads, **options):
    """Return the weight after these gradients from zero, and the optimizer."""
    weight = nn.Parameter(torch.zeros_like(grads[0]))
    optimizer = optimizer_type([{"params": [weight], **options}], lr=1.0)
    for grad in grads:
        weight.grad = grad.clone()
        optimizer.step()
    return weight.detach(), optimizer


@pytest.mark.parametrize("kind", ["tucker", "tucker_channels", "matrix", "slices", "select"])
def test_each_frequency_of_what_is_lost_moves_by_the_weight_in_the_mean_square(kind):
    grad = normal(*SHAPE) * 10.0 ** -torch.arange(4)  # frequencies of very different energy
    plain, _ = stepped(TensorGaLoreAdamW, [grad], rank=0.25, proj_type=kind, residual=None)
    moved, _ = stepped(TensorGaLoreAdamW, [grad], rank=0.25, proj_type=kind, residual="equalized", residual_weight=0.3)
    extra = plain - moved
    rms = extra.abs().square().mean((0, 1)).sqrt()
    torch.testing.assert_close(rms, torch.full_like(rms, 0.3), rtol=1e-9, atol=0)


def test_no_frequency_is_left_without_an_update():
    # A basis of low rank on a frequency mode keeps the strongest frequencies and never moves the others.
    grad = normal(*SHAPE) * torch.tensor([1.0, 0.5, 1e-3, 1e-4])
    options = {"rank": (10, 8, 5, 2), "proj_type": "tucker"}
    for residual, is_moved in ((None, False), ("equalized", True)):
        weight, _ = stepped(TensorGaLoreAdamW, [grad] * 3, residual=residual, **options)
        weakest = weight[..., 3].abs().square().mean().sqrt()
        assert bool(weakest > 0.5) == is_moved


@pytest.mark.parametrize("proj_type", ["left", "right", "full"])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_a_matrix_follows_the_sign_outside_of_its_subspace_whatever_the_scale(proj_type, scale):
    grad = normal(12, 10, dtype=torch.float64)
    options = {"rank": 3, "proj_type": proj_type, "basis_method": "svd", "scale": scale}
    plain, _ = stepped(GaLoreAdamW, [grad], **options)
    moved, _ = stepped(GaLoreAdamW, [grad], residual="equalized", residual_weight=0.1, **options)
    left, values, right = torch.linalg.svd(grad)
    kept = (left[:, :3] * values[:3]) @ right[:3]  # the best of rank 3, on each side and on both
    rest, least = grad - kept, 0.02 * grad.square().mean().sqrt()  # what is smaller counts as rounding
    torch.testing.assert_close(plain - moved, 0.1 * rest / rest.abs().clamp(min=least), rtol=0, atol=1e-9)


def test_rounding_outside_of_the_subspace_is_not_raised_to_full_steps():
    grad = normal(40, 4, seed=1, dtype=torch.float32) @ normal(4, 30, seed=2, dtype=torch.float32)
    plain, _ = stepped(GaLoreAdamW, [grad], rank=6, basis_method="svd")
    moved, _ = stepped(GaLoreAdamW, [grad], rank=6, basis_method="svd", residual="equalized", residual_weight=1.0)
    assert (plain - moved).abs().max() < 1e-3
    zero = torch.zeros(3, 4, dtype=torch.complex64)
    assert not equalize_(zero, zero, by_frequency=True).any()


@pytest.mark.parametrize("factor", [1e-18, 1e-23, 1e-30, 1e-38])
def test_frequencies_whose_squares_are_zero_take_no_longer_steps(factor):
    grad = normal(*SHAPE, dtype=torch.complex64)
    usual, _ = stepped(TensorGaLoreAdamW, [grad], rank=0.25)
    grad[..., 2] *= factor
    weight, _ = stepped(TensorGaLoreAdamW, [grad], rank=0.25)
    assert weight.abs().max() < 2 * usual.abs().max()


def test_at_full_rank_nothing_is_lost_and_it_is_adamw_bit_by_bit():
    grads = [normal(*SHAPE, seed=seed, dtype=torch.complex64) for seed in range(3)]
    full, _ = stepped(TensorGaLoreAdamW, grads, rank=1.0, residual="equalized")
    assert torch.equal(full, stepped(AdamW, grads, weight_decay=0.0)[0])


def test_it_takes_no_state():
    grad = normal(*SHAPE)
    sizes = [
        stepped(TensorGaLoreAdamW, [grad], rank=0.25, residual=residual)[1].state_bytes()
        for residual in (None, "equalized")
    ]
    assert sizes[0] == sizes[1]


def test_entries_of_the_sparse_branch_are_not_moved_twice():
    grad = normal(*SHAPE)
    options = {"rank": 0.2, "sparse_ratio": 0.05}
    plain, _ = stepped(TensorGRaD, [grad], **options)
    moved, optimizer = stepped(TensorGRaD, [grad], residual="equalized", **options)
    (state,) = optimizer.state.values()
    extra = (plain - moved).view(-1)
    assert not extra[state["sparse_index"].long()].any()
    assert (extra != 0).sum() == extra.numel() - len(state["sparse_index"])


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_layer_wise_it_sums_whole_gradients_and_equals_the_ordinary_step(micro_batches):
    results = []
    for is_layerwise in (False, True):
        model = nn.ParameterDict({"weight": nn.Parameter(normal(*SHAPE))})
        group = {"params": [model["weight"]], "rank": 0.25, "update_proj_gap": 2}
        optimizer = TensorGaLoreAdamW([group], lr=0.1, residual="equalized")
        handle = layerwise(model, optimizer, accumulation_steps=micro_batches) if is_layerwise else None
        for step in range(4):
            for micro in range(micro_batches):
                factor = normal(*SHAPE, seed=10 * step + micro) / micro_batches
                (model["weight"] * factor).sum().real.backward()
            if handle is None:
                optimizer.step()
                optimizer.zero_grad()
        results.append(model["weight"].detach())
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-12)


def test_pairs_of_reals_are_complex_numbers_here_too():
    grad = normal(*SHAPE)
    moved, _ = stepped(TensorGaLoreAdamW, [grad], rank=0.25, residual="equalized")
    pairs, _ = stepped(
        TensorGaLoreAdamW, [torch.view_as_real(grad)], rank=0.25, residual="equalized", complex_pair=True
    )
    assert torch.equal(torch.view_as_real(moved), pairs)


@pytest.mark.parametrize(
    ("dtype", "rule", "expected"),
    [
        (torch.complex128, "adamw", "equalized"),
        (torch.float64, "adamw", None),
        (torch.complex128, "sgd", None),
    ],
)
def test_by_default_operators_have_it_under_adam_and_real_tensors_do_not(dtype, rule, expected):
    grads = [normal(*SHAPE, seed=seed, dtype=dtype) for seed in range(3)]
    options = {"rank": 0.25, "rule": rule}
    default, _ = stepped(TensorGaLoreAdamW, grads, **options)
    said, _ = stepped(TensorGaLoreAdamW, grads, proj_type="tucker_channels", residual=expected, **options)
    assert torch.equal(default, said)


def test_what_only_matrices_have_is_refused_for_tensors():
    with pytest.raises(ConfigError, match=r"residual='fira' is not allowed; expected None or one of auto, equalized"):
        stepped(TensorGaLoreAdamW, [normal(*SHAPE)], residual="fira")
    with pytest.raises(ConfigError, match="residual_weight=-1"):
        stepped(GaLoreAdamW, [normal(8, 8, dtype=torch.float64)], rank=2, residual_weight=-1)

"""Ranks of the modes."""

import math

import pytest
import torch
from gradient_tensors import random_tensor

from featherweight.errors import ConfigError
from featherweight.linalg.tucker_fit import fit_tucker
from featherweight.linalg.tucker_ranks import greedy_ranks, tucker_ranks


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ("tensorgrad", [(17, 17, 6, 4), (46, 46, 46, 24), (91, 91, 91, 46)]),
        ("tensorly", [(16, 16, 5, 3), (45, 45, 45, 23)]),
    ],
)
def test_ranks_of_the_other_codes(counts, expected):
    shapes = [(24, 24, 8, 5), (64, 64, 64, 33), (128, 128, 128, 65)]
    assert [tucker_ranks(shape, 0.25, counts) for shape in shapes[: len(expected)]] == expected


@pytest.mark.parametrize("shape", [(24, 24, 8, 5), (64, 64, 64, 33), (1, 7, 5, 3), (32, 6, 8)])
@pytest.mark.parametrize("share", [0.01, 0.05, 0.25, 0.7])
def test_core_share_is_met_to_one_index_of_one_mode(shape, share):
    ranks, numel = tucker_ranks(shape, share), math.prod(shape)
    assert all(1 <= r <= n for r, n in zip(ranks, shape, strict=True))
    one_more = [math.prod(ranks) // r * (r + 1) for r, n in zip(ranks, shape, strict=True) if r < n]
    one_less = [math.prod(ranks) // r * (r - 1) for r in ranks if r > 1]
    # Not more than one index too few, not more than one too many.
    assert max(one_more, default=numel) >= share * numel
    assert min(one_less, default=0) <= share * numel


def test_other_forms_of_a_rank():
    assert tucker_ranks((8, 6, 4), 3) == (3, 3, 3)
    assert tucker_ranks((8, 6, 4), (5, 9, 2)) == (5, 6, 2)
    assert tucker_ranks((8, 6, 4), (0.5, 0.5, 1.0)) == (4, 3, 4)
    assert tucker_ranks((8, 6, 4), (8, 1, 1)) == (1, 1, 1)  # no core mode has more rank than the product of the others
    assert tucker_ranks((8, 6, 4), 0.25, modes=(0, 1))[2] == 4
    assert tucker_ranks((8, 6, 4), 1.0) == (8, 6, 4)
    for wrong in (0, -1, 0.0, 1.5, True, (1, 2), (0.5, 0, 1)):
        with pytest.raises(ConfigError, match="not allowed"):
            tucker_ranks((8, 6, 4), wrong)


def test_greedy_ranks_follow_the_spectrum():
    grad = torch.einsum(
        "ia,jb,kc,abc->ijk",
        *(torch.linalg.qr(random_tensor((n, n), torch.float64, n)).Q for n in (8, 8, 8)),
        random_tensor((8, 8, 8), torch.float64) * torch.tensor([1.0] * 2 + [1e-3] * 6, dtype=torch.float64),
    )
    ranks = greedy_ranks(grad, 128)
    assert ranks[2] == 2 and math.prod(ranks) <= 128
    assert fit_tucker(grad, ranks).error_sq < 0.5 * fit_tucker(grad, tucker_ranks(grad.shape, 0.25)).error_sq


def test_greedy_ranks_leave_other_modes_alone():
    grad = random_tensor((6, 5, 4), torch.complex128)
    ranks = greedy_ranks(grad, 4 * 9, modes=(0, 1))
    assert ranks[2] == 4 and ranks[0] * ranks[1] <= 9 < (ranks[0] + 1) * (ranks[1] + 1)
    with pytest.raises(ConfigError, match="expected at least 4 entries"):
        greedy_ranks(grad, 3, modes=(0, 1))

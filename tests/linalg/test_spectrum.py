import itertools
import math

import numpy as np
import pytest
import torch

from featherweight.errors import ConfigError, NumericsError
from featherweight.linalg import spectrum as sp


def spectra_of(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        f"layer.{i}": torch.linalg.svdvals(torch.randn(*shape, generator=generator, dtype=torch.float64))
        for i, shape in enumerate(shapes)
    }


HAND = {"hand": torch.tensor([10.0, 5.0, 2.0, 1.0, 0.0], dtype=torch.float64)}


def test_threshold_counts_values_strictly_below_it():
    # Normalised: 1, 0.5, 0.2, 0.1, 0. Mutation: <= instead of < drops the 0.2 at the first threshold.
    assert sp.threshold_ranks(HAND, 0.2).ranks == {"hand": 3}
    assert sp.threshold_ranks(HAND, 0.21).ranks == {"hand": 2}
    assert sp.threshold_ranks(HAND, 1.0).ranks == {"hand": 1}


def test_ranks_do_not_change_with_scale_and_rotation(generator):
    matrix = torch.randn(9, 13, generator=generator, dtype=torch.float64)
    left, right = (torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q for n in (9, 13))
    plain = sp.threshold_ranks({"w": sp.singular_values(matrix)}, 0.37)
    for changed in (-3.7 * matrix, 1e-20 * matrix, left @ matrix @ right):
        assert sp.threshold_ranks({"w": sp.singular_values(changed)}, 0.37) == plain


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_orthogonal_matrix_keeps_all_ranks(generator, dtype):
    matrix = torch.linalg.qr(torch.randn(64, 64, generator=generator, dtype=dtype)).Q
    spectra = {"flat": sp.singular_values(5 * matrix), **spectra_of((20, 30))}
    assert sp.threshold_ranks(spectra, 0.5).ranks["flat"] == 64
    assert sp.quantile_ranks(spectra, 0.1).ranks["flat"] == 64
    assert sp.normalize(torch.zeros(4)) is None and sp.normalize(torch.ones(1)) is None


@pytest.mark.parametrize("rule", [sp.quantile_ranks, sp.energy_ranks, sp.uniform_ranks])
def test_exactly_the_wished_ranks_go_and_more_never_gives_a_rank_back(rule):
    spectra = spectra_of((7, 11), (13, 13), (1, 5), (40, 17), (2, 2))
    total = sum(len(s) for s in spectra.values())
    before = {name: len(s) for name, s in spectra.items()}
    for rank_reduction in np.linspace(0.02, 0.85, 60):
        ranks = rule(spectra, float(rank_reduction)).ranks
        assert total - sum(ranks.values()) == math.floor(rank_reduction * total)
        assert all(1 <= ranks[name] <= len(spectra[name]) for name in spectra)
        if rule is not sp.uniform_ranks:  # dealing out the rounding may move a rank between matrices
            assert all(ranks[name] <= before[name] for name in spectra)
        before = ranks


def test_the_quantile_is_the_threshold():
    spectra = spectra_of((30, 40), (25, 25), (60, 12))
    for rank_reduction in (0.1, 0.43, 0.8):
        found = sp.quantile_ranks(spectra, rank_reduction)
        same = sp.threshold_ranks(spectra, found.threshold).ranks
        # Each matrix has one value that is exactly 0; they tie only below any threshold used here.
        assert same == found.ranks


def test_ties_go_in_the_order_of_names():
    # 0.5 stands twice, 0 twice: of five values three go, the zeros and the first name's 0.5.
    tie = torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64)
    assert sp.quantile_ranks({"b": tie, "a": tie}, 0.5).ranks == {"a": 1, "b": 2}


def test_lrc_threshold_is_the_largest_that_stays_within_the_request():
    spectra = spectra_of((30, 40), (25, 25), (60, 12), (33, 8))
    spectra["heavy"] = torch.linspace(1, 0, 40, dtype=torch.float64) ** 4
    total = sum(len(s) for s in spectra.values())

    def dropped(threshold):
        count = 0
        for s in spectra.values():
            pruned = int((sp.normalize(s) < threshold).sum())
            count += pruned if pruned / len(s) > 0.4999 else 0
        return count

    candidates = torch.cat([sp.normalize(s) for s in spectra.values()]).unique()
    for rank_reduction in (0.05, 0.2, 0.33, 0.6, 0.9):
        found = sp.lrc_ranks(spectra, rank_reduction)
        pruned = total - sum(found.ranks.values())
        allowed = [float(k) for k in candidates if dropped(float(k)) <= rank_reduction * total]
        assert found.threshold == max(allowed) and pruned == dropped(found.threshold)
        for name, rank in found.ranks.items():
            assert rank == len(spectra[name]) or sp.is_low_rank_component(rank, len(spectra[name]))


@pytest.mark.parametrize("pivoted", [False, True])
def test_budget_equals_brute_force_within_one_rank(pivoted):
    # Three 6x5 matrices, all 125 triples of ranks.
    for seed in range(8):
        spectra = spectra_of((6, 5), (6, 5), (6, 5), seed=seed)

        def cost(name, ranks):
            return np.minimum(30, ranks * (11 - ranks) if pivoted else ranks * 11)

        def loss(ranks, spectra=spectra):
            return sum(float(sp.energy_shares(spectra[n])[r:].sum()) for n, r in ranks.items())

        for budget in (33, 40, 55, 61, 70, 89, 90):
            if 3 * float(cost("", np.array(1))) > budget:
                continue
            ranks = sp.budget_ranks(spectra, cost, budget).ranks
            spent = sum(float(cost(n, np.array(r))) for n, r in ranks.items())
            best = min(
                loss(dict(zip(spectra, triple, strict=True)))
                for triple in itertools.product(range(1, 6), repeat=3)
                if sum(float(cost("", np.array(r))) for r in triple) <= budget
            )
            largest = max(float(sp.energy_shares(s)[1]) for s in spectra.values())
            assert spent <= budget and best - 1e-12 <= loss(ranks) <= best + largest


def test_an_unreachable_budget_names_the_least():
    spectra = spectra_of((6, 5), (4, 4))
    with pytest.raises(ConfigError, match="at least 19"):
        sp.budget_ranks(spectra, lambda name, ranks: ranks * (11 if name == "layer.0" else 8), 18)


@pytest.mark.parametrize("rule", [sp.quantile_ranks, sp.energy_ranks, sp.uniform_ranks, sp.lrc_ranks])
@pytest.mark.parametrize("value", [0.0, 1.0, -0.5, 50])
def test_a_share_out_of_range_is_refused(rule, value):
    with pytest.raises(ConfigError, match=r"expected 0 < rank_reduction < 1"):
        rule(spectra_of((6, 5)), value)


def test_a_share_that_leaves_no_rank_names_the_possible_one():
    with pytest.raises(ConfigError, match="at most 0.8000"):
        sp.quantile_ranks(spectra_of((6, 5), (5, 5)), 0.9)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_matrix_that_is_not_finite_is_named(value):
    matrix = torch.ones(3, 4)
    matrix[1, 2] = value
    with pytest.raises(NumericsError, match=r"'layers.3.q_proj' \(3, 4\) holds 1 entries"):
        sp.singular_values(matrix, "layers.3.q_proj")


def test_values_from_the_gram_matrix_are_those_of_the_svd(generator, monkeypatch):
    monkeypatch.setattr(sp, "GRAM_SIDE", 32)
    for shape in ((40, 70), (70, 40)):
        matrix = torch.randn(*shape, generator=generator)
        exact = torch.linalg.svdvals(matrix.double())
        # float32 squares: an error of 1e-6 * largest^2 / (2 * value) and these values are above 0.1 of the largest.
        torch.testing.assert_close(sp.singular_values(matrix), exact, rtol=0, atol=1e-5 * float(exact[0]))


def test_explained_rank_in_both_forms():
    values = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)
    assert [sp.explained_rank(values, share) for share in (0.64, 0.9, 0.95, 1.0)] == [1, 2, 3, 3]
    padded = torch.tensor([3.0, 2.0, 1.0, 0.0], dtype=torch.float64)
    # Variance about the mean: 5/3; without the first two: 1/4; so 0.85 are explained by two.
    assert sp.variance_ratios(padded).tolist() == pytest.approx([1 - (11 / 12) / (5 / 3), 0.85, 1.0, 1.0])
    assert sp.explained_rank(padded, 0.9, "variance") == 3 and sp.explained_rank(padded, 0.84, "variance") == 2
    assert sp.explained_rank(torch.zeros(4), 0.9) == 0

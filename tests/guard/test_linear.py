import pytest
import torch

from featherweight.errors import ConfigError
from featherweight.guard.linear import cross_fit, fit_linear
from featherweight.guard.metrics import auroc


def classes(count=200, features=20, apart=1.5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(2 * count, features, generator=generator)
    rows[:count, 0] += apart
    rows[:, 3] *= 500  # as large as some hidden states
    rows[:, 7] = 4.0  # says nothing
    return rows, torch.tensor([1] * count + [0] * count)


def test_scores_tell_classes_apart_whatever_the_size_of_features():
    rows, labels = classes()
    score, held_out = fit_linear(rows, labels)
    fresh, _ = classes(seed=1)
    assert auroc(score(fresh[:200]), score(fresh[200:])) > 0.8
    assert auroc(held_out[:200], held_out[200:]) > 0.75


def test_scores_of_held_out_rows_are_not_those_of_the_fit():
    # Labels that mean nothing: a fit remembers them, folds that have not seen a row cannot.
    rows, labels = classes(count=60, apart=0.0)
    score, held_out = fit_linear(rows, labels)
    assert auroc(score(rows)[:60], score(rows)[60:]) > 0.7
    assert abs(auroc(held_out[:60], held_out[60:]) - 0.5) < 0.2


def test_rows_of_one_group_are_never_in_two_folds():
    # Each row four times: without groups its copies would give away its meaningless label.
    rows, labels = classes(count=15, features=60, apart=0.0)
    groups = [str(index) for index in range(30)] * 4
    _, alone = fit_linear(rows.repeat(4, 1), labels.repeat(4))
    _, grouped = fit_linear(rows.repeat(4, 1), labels.repeat(4), groups)
    many = labels.repeat(4)
    assert auroc(alone[many == 1], alone[many == 0]) > 0.95
    assert auroc(grouped[many == 1], grouped[many == 0]) < 0.8


def test_both_classes_count_equally_whatever_their_numbers():
    rows, labels = classes()
    few = torch.cat([rows[:200], rows[200:240]]), torch.cat([labels[:200], labels[200:240]])
    score, _ = fit_linear(*few)
    fresh, _ = classes(seed=2)
    assert float((score(fresh[200:]) > 0).double().mean()) < 0.4


def test_a_kind_of_few_rows_counts_for_more_than_its_number():
    rows, labels = classes(count=200)
    kinds = ["bad"] * 200 + ["plain"] * 180 + ["close"] * 20
    rows[380:, 0] += 1.5  # what is close looks like the other class in one place, and tells itself apart in another
    rows[380:, 1] += 1.5
    several, _ = fit_linear(rows, labels, kinds=kinds, strengths=(1e-2,))
    alike, _ = fit_linear(rows, labels, strengths=(1e-2,))
    assert float(several(rows[380:]).mean()) < float(alike(rows[380:]).mean()) - 0.1


def test_two_scores_side_by_side_are_their_sum():
    rows, labels = classes(count=40)
    first, second = (fit_linear(one, labels, strengths=(1e-2,))[0] for one in (rows[:, :5], rows[:, 5:]))
    both = first.beside(second)
    # The order of float32 sums.
    torch.testing.assert_close(both(rows), first(rows[:, :5]) + second(rows[:, 5:]), rtol=0, atol=1e-4)


def test_what_cannot_be_fitted_is_refused():
    rows, labels = classes()
    with pytest.raises(ConfigError, match="features are not finite"):
        fit_linear(rows.clone().index_fill_(0, torch.tensor([3]), float("nan")), labels)
    with pytest.raises(ConfigError, match="rows=4 of one class are too few"):
        fit_linear(rows[196:], labels[196:])


def test_an_earlier_place_is_scored_by_the_folds_that_had_not_seen_the_row():
    draw = torch.Generator().manual_seed(0)
    labels = (torch.arange(120) % 2).long()
    noise = torch.randn(120, 200, generator=draw)  # nothing to learn, much to remember
    found = cross_fit(noise, labels, strengths=(1e-4,))
    earlier = noise + 0.01 * torch.randn(120, 200, generator=draw)
    remembered = auroc(found.score(earlier)[labels == 1], found.score(earlier)[labels == 0])
    honest = found.held_out(earlier)
    assert remembered > 0.99 and abs(auroc(honest[labels == 1], honest[labels == 0]) - 0.5) < 0.2
    twice = found.beside(found)
    assert torch.allclose(twice.held_out(torch.cat([earlier, earlier], dim=1)), 2 * honest, atol=1e-5)

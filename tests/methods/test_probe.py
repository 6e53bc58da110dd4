import torch

from featherweight.methods.probe import difference


def test_rounding_is_no_difference_and_a_wrong_entry_is_one():
    expected = torch.tensor([100.0, 1e-6, 0.0])

    assert difference(expected + 1e-3, expected, tolerance=1e-4) is None
    assert difference(expected + torch.tensor([0.0, 0.5, 0.0]), expected, tolerance=1e-4) == 0.5


def test_nan_and_infinity_must_stand_at_the_same_places():
    expected = torch.tensor([1.0, float("nan"), float("inf")])

    assert difference(expected.clone(), expected, tolerance=1e-4) is None
    assert difference(torch.tensor([1.0, 2.0, float("inf")]), expected, tolerance=1e-4) is not None
    assert difference(torch.tensor([1.5, float("nan"), float("inf")]), expected, tolerance=1e-4) is not None

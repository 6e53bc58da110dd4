"""Axes of stored arrays: known where one reading fits, asked for where two do."""

import pytest
import torch

from featherweight.errors import ConfigError
from featherweight.pde.axes import arranged, axes_of_coordinates, check_axes, indexed, infer_axes


@pytest.mark.parametrize(
    ("x", "y", "dimensions", "expected"),
    [
        ((8, 16, 16), (8, 16, 16), 2, (None, None)),
        ((8, 1, 16, 16), (8, 3, 16, 16), 2, (None, None)),
        ((8, 64), (8, 64), None, (None, None)),
        ((8, 16, 16), (8, 16, 16, 5), 2, ("nxy", "nxyc")),  # the times of Li's Navier-Stokes files stand last
        ((8, 16, 16), (8, 5, 16, 16), 2, ("nxy", "ncxy")),
        ((8, 16, 16, 5), (8, 16, 16), None, ("nxyc", "nxy")),
        ((8, 64, 1), (8, 64, 3), 1, ("nxc", "nxc")),
        ((8, 3, 16, 16), (8, 16, 16, 5), 2, ("ncxy", "nxyc")),
    ],
)
def test_the_only_reading_with_common_points_is_taken(x, y, dimensions, expected):
    assert infer_axes(x, y, dimensions, where="test") == expected


@pytest.mark.parametrize(
    ("x", "y", "dimensions", "problem"),
    [
        ((8, 16, 16), (8, 16, 16, 16), 2, "more than one way"),
        ((8, 16, 16), (8, 16, 16, 16), None, "more than one way"),
        ((8, 16, 16, 3), (8, 16, 16, 3), 2, "more than one way"),  # channels last would fit as well
        ((8, 16, 16, 16), (8, 16, 16, 16), 2, "more than one way"),
        ((8, 16, 16), (8, 32, 32), 2, "no points in common"),
        ((8, 16, 16), (8, 5, 12, 12), 2, "no points in common"),
    ],
)
def test_what_fits_twice_or_never_is_asked_for(x, y, dimensions, problem):
    with pytest.raises(ConfigError, match=f"{problem}.*Give x_axes and y_axes"):
        infer_axes(x, y, dimensions, where="test")


def test_axes_told_for_one_array_settle_the_other():
    x, y = (8, 16, 16), (8, 16, 16, 16)
    assert infer_axes(x, y, 2, told=(None, "nxyt"), where="test") == ("nxy", "nxyt")
    with pytest.raises(ConfigError, match="no points in common"):
        infer_axes((8, 32, 32), y, 2, told=(None, "nxyt"), where="test")


@pytest.mark.parametrize("axes", ["nxy", "nxyy", "nxyq", "txyc", "nctx ", "nczx", "nctt"])
def test_axes_that_do_not_fit_are_refused(axes):
    with pytest.raises(ConfigError, match="y_axes=.*one letter an axis"):
        check_axes(axes, (8, 16, 16, 5), name="y_axes", where="test")


def test_coordinates_tell_the_axes_only_if_their_lengths_fit():
    assert axes_of_coordinates((12, 21, 64), {"t": 22, "x": 64}) == "ntx"
    assert axes_of_coordinates((3, 11, 16, 8, 2), {"t": 11, "x": 16, "y": 8}) == "ntxyc"
    assert axes_of_coordinates((12, 64, 21), {"t": 22, "x": 64}) is None
    assert axes_of_coordinates((12, 64), {"x": 64}) is None
    assert axes_of_coordinates((12, 21, 64), {"t": 22, "y": 64}) is None


def test_arrays_come_out_with_samples_first_times_before_channels_and_one_chosen_time():
    array = torch.arange(2 * 3 * 4 * 5 * 2.0).reshape(2, 3, 4, 5, 2)  # n x y t c
    whole = arranged(array, "nxytc")
    assert whole.shape == (2, 10, 3, 4) and torch.equal(whole[:, 2 * 3 + 1], array[..., 3, 1])
    selection, left = indexed("nxytc", tuple(array.shape), -1, name="y_index", where="test")
    assert left == "nxyc" and torch.equal(arranged(array[tuple(selection)], left)[:, 1], array[..., -1, 1])
    with pytest.raises(ConfigError, match="y_index=5 is out of range"):
        indexed("nxytc", tuple(array.shape), 5, name="y_index", where="test")
    with pytest.raises(ConfigError, match="y_index=0 chooses a time"):
        indexed("nxy", (2, 3, 4), 0, name="y_index", where="test")

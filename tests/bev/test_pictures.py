import numpy as np
import pytest
from PIL import Image

from featherweight.bev import pictures
from featherweight.bev.data.classes import ARGOVERSE1, ARGOVERSE2, NUSCENES, find_classes
from featherweight.bev.grid import BEVGridConfig
from featherweight.bev.streaming import level_camera
from featherweight.errors import ConfigError

GRID = BEVGridConfig(resolution=0.5, anchor="center")


def masks(*names: str) -> np.ndarray:
    result = np.zeros((14, *GRID.shape), bool)
    for name in names:
        result[NUSCENES.names.index(name)] = True
    return result


@pytest.mark.parametrize("name", [NUSCENES.name, ARGOVERSE1.name, ARGOVERSE2.name])
def test_every_class_has_a_colour_of_its_own(name):
    names = find_classes(name).names
    assert len({pictures.COLORS[one] for one in names}) == len(names)


def test_later_classes_lie_over_earlier_ones():
    colors = pictures.class_colors(masks("drivable_area", "car"), NUSCENES.names)
    assert tuple(colors[0, 0]) == pictures.COLORS["car"]


def test_far_is_up_and_left_is_left_on_the_map():
    cells = np.zeros((*GRID.shape, 3), np.uint8)
    cells[:10, :10] = (255, 0, 0)  # near, left
    image = np.asarray(pictures.map_picture(cells, GRID))
    red = np.argwhere((image == (255, 0, 0)).all(axis=-1))
    assert red[:, 0].mean() > image.shape[0] * 0.8 and red[:, 1].mean() < image.shape[1] * 0.3


def test_unseen_cells_are_paled_and_seen_ones_untouched():
    colors, seen = pictures.class_colors(masks("car"), NUSCENES.names), np.zeros(GRID.shape, bool)
    seen[:50] = True
    hatched = pictures.hatch(colors, seen)
    assert np.array_equal(hatched[:50], colors[:50]) and not np.array_equal(hatched[50:], colors[50:])


def test_errors_show_what_is_missed_and_what_is_false():
    seen = np.ones(GRID.shape, bool)
    none, car = masks(), masks("car")
    assert tuple(pictures.error_colors(none, car, seen)[0, 0]) == pictures.MISSED
    assert tuple(pictures.error_colors(car, none, seen)[0, 0]) == pictures.FALSE
    assert tuple(pictures.error_colors(car, car, seen)[0, 0]) == pictures.RIGHT


def test_the_ground_is_laid_over_pixels_below_the_horizon_alone():
    image = Image.new("RGB", (160, 90), (10, 10, 10))
    intrinsics = np.array([[130.0, 0, 80], [0, 130.0, 40], [0, 0, 1]])
    over = np.asarray(
        pictures.overlay(image, masks("drivable_area"), NUSCENES.names, GRID, intrinsics, level_camera(1.5))
    )
    changed = (over != 10).any(axis=-1)
    assert not changed[:42].any() and changed[60:].all()


@pytest.mark.parametrize("width", [200, 900])
def test_the_legend_wraps_and_the_sheet_holds_everything(width):
    legend = pictures.legend(NUSCENES.names, width)
    assert legend.width == width and legend.height >= (20 if width == 900 else 80)
    panels = [pictures.Panel("one", Image.new("RGB", (30, 20))), pictures.Panel("two", Image.new("RGB", (20, 20)))]
    sheet = pictures.sheet(panels, legend, height=100)
    assert sheet.width >= width and sheet.height == 100 + 34 + legend.height


def test_what_the_network_reads_stays_bright():
    image = Image.new("RGB", (40, 20), (100, 150, 200))
    share = np.zeros((5, 10))
    share[:, 5:] = 1
    shown = np.asarray(pictures.heat(image, share)).astype(int)
    assert shown[:, -5:].mean() > 1.5 * shown[:, :5].mean()


def test_what_no_picture_can_be_written_to_is_refused_before_anything_is_computed(tmp_path):
    assert pictures.check_picture_path(tmp_path / "map.png", where="test") == tmp_path / "map.png"
    with pytest.raises(ConfigError, match="no suffix of a picture"):
        pictures.check_picture_path(tmp_path / "map.xyz", where="test")
    with pytest.raises(ConfigError, match="does not exist"):
        pictures.check_picture_path(tmp_path / "no" / "map.png", where="test")

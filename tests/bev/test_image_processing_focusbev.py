import numpy as np
import pytest
from PIL import Image

from featherweight.bev.geometry import project
from featherweight.bev.image_processing_focusbev import FocusBEVImageProcessor, read_image, to_rgb
from featherweight.bev.synthetic.rig import INTRINSICS
from featherweight.errors import ConfigError, ShapeError


def dotted(size, at):
    image = Image.new("RGB", size)
    image.paste((255, 255, 255), (at[0] - 8, at[1] - 8, at[0] + 8, at[1] + 8))
    return image


@pytest.mark.parametrize("target", [(128, 224), (448, 800), (272, 480), (600, 800), (300, 300)])
def test_a_point_stays_where_the_intrinsics_say(target):
    point = np.array([1.0, 0.8, 10.0])
    u, v = project(point, INTRINSICS).round().astype(int)
    pixels, matrix = FocusBEVImageProcessor(target).fit(dotted((1600, 900), (u, v)), INTRINSICS)
    assert pixels.shape == (3, *target)
    row, column = np.indices(target)
    weight = pixels[0].astype(float)
    center = (weight * (column + 0.5)).sum() / weight.sum(), (weight * (row + 0.5)).sum() / weight.sum()
    np.testing.assert_allclose(center, project(point, matrix), atol=0.5)


def test_published_sizes_stretch_or_cut_as_the_format_expects():
    image = Image.new("RGB", (1600, 900))
    _, tiny = FocusBEVImageProcessor((128, 224)).fit(image, INTRINSICS)
    assert tiny[0, 0] / INTRINSICS[0, 0] == pytest.approx(0.14)
    assert tiny[1, 1] / INTRINSICS[1, 1] == pytest.approx(128 / 900)
    _, base = FocusBEVImageProcessor((448, 800)).fit(image, INTRINSICS)
    assert base[1, 2] == pytest.approx(INTRINSICS[1, 2] / 2 * 448 / 450, abs=2.1)


def test_it_is_loaded_as_it_was_saved(tmp_path):
    FocusBEVImageProcessor((64, 96), mean=(0.1, 0.2, 0.3)).save_pretrained(tmp_path)
    again = FocusBEVImageProcessor.from_pretrained(tmp_path)
    assert again.image_size == (64, 96) and again.mean == (0.1, 0.2, 0.3)


@pytest.mark.parametrize("mode", ["L", "RGBA", "I;16", "P", "CMYK"])
def test_grey_transparent_and_deep_pictures_become_colours(mode):
    if mode == "I;16":
        image = Image.fromarray(np.full((4, 4), 200 * 257, np.uint16))
    else:
        image = Image.new("RGB", (4, 4), (200, 200, 200)).convert(mode)
    np.testing.assert_allclose(np.asarray(to_rgb(image)), 200, atol=4)


def test_intrinsics_of_another_size_are_refused():
    with pytest.raises(ShapeError, match="another image size"):
        FocusBEVImageProcessor((128, 224)).fit(Image.new("RGB", (640, 480)), INTRINSICS)


def test_unreadable_pictures_are_named(tmp_path):
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(ConfigError, match="cannot be read as a picture"):
        read_image(tmp_path / "text.jpg")
    with pytest.raises(ConfigError, match="is missing"):
        read_image(tmp_path / "nothing.jpg")

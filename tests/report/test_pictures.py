import numpy as np
import pytest

from featherweight.errors import ConfigError
from featherweight.report import Report
from featherweight.report.pictures import places_in_palette


def test_every_picture_of_an_awkward_report_is_drawn_without_a_warning(awkward_report, tmp_path):
    # Warnings are errors in this suite; matplotlib warns of missing glyphs, hidden labels and logarithms of zero.
    for section in awkward_report.sections:
        if section.kind in ("curves", "bars"):
            awkward_report.save_picture(tmp_path / "picture.png", section.title)


def test_picture_is_a_png_of_1440_pixels_that_shows_something(report, tmp_path):
    from matplotlib import image

    for title in ("Loss", "Memory"):
        report.save_picture(tmp_path / "new" / "picture.png", title)
        pixels = image.imread(tmp_path / "new" / "picture.png")

        assert pixels.shape[:2] == (720, 1440)
        blue = np.array([0x00, 0x72, 0xB2]) / 255
        # The first series is blue; half a level of 8 bits is the rounding of the file format.
        assert (np.abs(pixels[..., :3] - blue).max(axis=-1) <= 0.5 / 255).sum() > 100


def test_a_term_of_memory_has_one_colour_in_every_picture():
    first = places_in_palette(["weights", "optimizer_state", "something"])
    second = places_in_palette(["else", "optimizer state", "weights"])
    assert (first[0], first[1]) == (second[2], second[1])
    many = places_in_palette([f"c{i}" for i in range(9)])
    assert many == list(range(9))


def test_picture_of_an_unknown_or_pictureless_section_is_refused(report, tmp_path):
    with pytest.raises(ConfigError, match="section='Los' is unknown.*Did you mean 'Loss'"):
        report.save_picture(tmp_path / "a.png", "Los")
    with pytest.raises(ConfigError, match="is a table and has no picture.*Choose one of: Loss, Memory"):
        report.save_picture(tmp_path / "a.png", "Results")
    with pytest.raises(ConfigError, match="Add sections first"):
        Report("Empty").save_picture(tmp_path / "a.png", "Loss")
    assert list(tmp_path.iterdir()) == []


def test_drawing_leaves_the_settings_of_matplotlib_as_they_were(report, tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    report.save_picture(tmp_path / "a.png", "Loss")

    assert dict(matplotlib.rcParams) == before

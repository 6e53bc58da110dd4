import re

import numpy as np
import pytest

from featherweight.errors import ConfigError
from featherweight.report import Report
from featherweight.report.pictures import PALETTE, colour_of, draw_picture, places_in_palette
from featherweight.report.sections import Bars, Curves


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


def test_curves_and_bars_and_terminals_show_a_term_of_memory_in_the_same_colour():
    curves = Curves(
        "c", "steps", "memory (GiB)", {"activations": [[1, 2], [1.0, 2.0]], "weights": [[1, 2], [3.0, 3.0]]}
    )
    bars = Bars("b", "memory (GiB)", {"a": {"activations": 1.0}})
    for section in (curves, bars):
        assert colour_of("activations") in draw_picture(section, "svg").decode()
    assert colour_of("gradients") not in draw_picture(curves, "svg").decode()
    assert colour_of("something else") == colour_of("rest") == PALETTE[6][0]
    assert colour_of("weights", is_dark=True) == PALETTE[0][1]


def contrast(one, other):
    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_every_colour_of_the_palette_is_seen_on_its_page():
    # WCAG 2.1 asks for 3 : 1 of parts of a picture; orange and sky blue of Okabe and Ito have 2.2 on white, where an
    # edge, a marker and the legend help. On the dark page all reach it.
    assert all(contrast(light, "#ffffff") > 2.1 and contrast(dark, "#1b1f24") > 3 for light, dark in PALETTE)


def texts_of(picture):
    """Return the comments in which matplotlib keeps the text of each label."""
    return re.findall("<!-- (.*?) -->", picture.decode())


def test_ticks_have_equal_decimals_and_shares_are_percentages():
    loss = Curves("c", "steps", "loss", {"a": [[1, 2, 3], [2.44, 2.6, 2.75]]})
    ticks = [text for text in texts_of(draw_picture(loss, "svg")) if text.startswith("2.")]
    assert len(ticks) > 2 and len({len(text) for text in ticks}) == 1
    shares = Curves("c", "share of the steps", "rank kept (share of full rank)", {"a": [[0.0, 1.0], [0.5, 0.25]]})
    texts = texts_of(draw_picture(shares, "svg"))
    assert {"0 %", "30 %", "60 %"} <= set(texts) and sum(text.endswith(" %") for text in texts) == len(texts) - 3


def test_letters_of_a_narrow_picture_are_those_of_a_telephone(report):
    def width_of(picture):
        return float(re.search(r'viewBox="0 0 ([\d.]+)', picture.decode())[1])

    section = report.section("Memory")
    # A page of 390 pixels leaves 334 for a picture, so that ten points of a narrow one are ten pixels or more there.
    assert width_of(draw_picture(section, "svg", is_narrow=True)) < 334 < width_of(draw_picture(section, "svg"))

"""Dots are found to a part of a pixel, and doubtful ones not at all."""

import colorsys

import numpy as np
import pytest

from featherweight.robot.camera.fiducial import GRIPPER_CARD, SPACING_M, TABLE_CARD, find_dots

pytest.importorskip("scipy")
PLACES = np.array([[30.3, 40.8], [60.0, 41.5], [61.2, 20.1], [31.7, 19.4]])


def draw(card, places=PLACES, radius_px=5.0, light=0.8):
    """Draw dots on white, with soft edges, eight samples a pixel and side."""
    grid = (np.arange(100 * 8) + 0.5) / 8 - 0.5
    picture = np.ones((800, 800, 3))
    for (x, y), hue in zip(places, card.hues, strict=True):
        inside = (grid[None, :] - x) ** 2 + (grid[:, None] - y) ** 2 < radius_px**2
        picture[inside] = colorsys.hsv_to_rgb(hue, 1, 1)
    soft = picture.reshape(100, 8, 100, 8, 3).mean(axis=(1, 3)) * light
    return (255 * soft).round().astype(np.uint8)


@pytest.mark.parametrize("card", [GRIPPER_CARD, TABLE_CARD])
@pytest.mark.parametrize("light", [1.0, 0.4])
def test_dots_are_found_to_a_tenth_of_a_pixel_in_any_light_and_cards_are_not_mixed_up(card, light):
    picture = draw(card, light=light)
    assert np.abs(find_dots(picture, card)[0] - PLACES).max() < 0.1
    other = TABLE_CARD if card is GRIPPER_CARD else GRIPPER_CARD
    assert np.isnan(find_dots(picture, other)).all()


def test_dots_that_are_small_at_the_border_or_twice_there_are_left_out():
    assert np.isnan(find_dots(draw(GRIPPER_CARD, radius_px=1.2), GRIPPER_CARD)).all()
    places = PLACES.copy()
    places[0] = (1.0, 40.0)
    found = find_dots(draw(GRIPPER_CARD, places), GRIPPER_CARD)[0]
    assert np.isnan(found[0]).all() and not np.isnan(found[1:]).any()
    twice = draw(GRIPPER_CARD)
    twice[70:80, 70:80] = draw(GRIPPER_CARD)[36:46, 25:35]
    found = find_dots(twice, GRIPPER_CARD)[0]
    assert np.isnan(found[0]).all() and not np.isnan(found[1:]).any()


def test_a_card_s_dots_are_a_square_around_its_centre():
    dots = GRIPPER_CARD.dots_m
    np.testing.assert_allclose(dots.mean(axis=0), GRIPPER_CARD.center_m)
    np.testing.assert_allclose(np.linalg.norm(np.roll(dots, -1, axis=0) - dots, axis=1), SPACING_M)
    # The gripper's card looks along +x of frame 5, away from the base.
    np.testing.assert_allclose(GRIPPER_CARD.normal, [1, 0, 0])
    np.testing.assert_allclose(TABLE_CARD.normal, [0, 0, 1])

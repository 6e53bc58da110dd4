import numpy as np
from PIL import Image

from featherweight.bev.pictures import FALSE, MISSED


def test_a_run_draws_what_its_network_sees_says_and_gets_wrong(run):
    """Three rows of camera, map laid over, relevance, map, truth and errors, with titles and legend."""
    with Image.open(run.folder / "held_out.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.shape[0] > 900 and pixels.shape[1] > 1500
    right = pixels[:, -340:]
    for color in (MISSED, FALSE):
        assert (right == color).all(axis=-1).sum() > 100, "after three steps much is wrong"

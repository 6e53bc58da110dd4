"""Moving pictures."""

import numpy as np
import pytest

from featherweight.errors import ConfigError
from featherweight.robot.sim.film import write_gif


def test_a_film_has_its_pictures_in_their_colours(tmp_path):
    image = pytest.importorskip("PIL.Image")
    pictures = [np.full((12, 16, 3), value, dtype=np.uint8) for value in (0, 120, 255, 30, 60)]
    with image.open(write_gif(tmp_path / "film.gif", pictures, fps=10)) as film:
        assert film.n_frames == 5 and film.size == (16, 12) and film.info["duration"] == 100
        film.seek(2)
        assert np.abs(np.asarray(film.convert("RGB")).astype(int) - 255).max() < 8


def test_a_film_of_nothing_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="would hold no pictures"):
        write_gif(tmp_path / "film.gif", [])

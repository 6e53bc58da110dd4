"""A folder of small files of Darcy flow."""

from pathlib import Path

import pytest

from featherweight.pde import DarcyConfig, generate


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with training data at 9 and tests at 9 and 17."""
    path = tmp_path_factory.mktemp("darcy")
    generate("darcy", path, n=10, n_test=4, config=DarcyConfig(resolution=9, refine=2))
    generate("darcy", path, n=0, n_test=4, config=DarcyConfig(resolution=17, refine=1))
    return path

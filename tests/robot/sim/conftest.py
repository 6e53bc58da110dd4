"""The simulator's tests need mujoco."""

import importlib.util

import pytest


@pytest.fixture(autouse=True)
def needs_mujoco():
    """A skip where mujoco is not installed; it is not imported here, since that would choose graphics."""
    if importlib.util.find_spec("mujoco") is None:
        pytest.skip("mujoco is not installed")

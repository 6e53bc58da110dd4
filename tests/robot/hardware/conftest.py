"""What the tests of the printed kit share."""

import pytest

pytest.importorskip("manifold3d", reason="run pip install featherweight[kit]")


@pytest.fixture(scope="session")
def assembly():
    """The kit's own arm."""
    from featherweight.robot.hardware.assembly import Assembly

    return Assembly()

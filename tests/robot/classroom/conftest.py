"""A class of two students, made once; each test gets a copy."""

import shutil

import pytest

MEMBERS = {"teacher": "instructor", "eve": "observer", "arm1": "robot", "native": "operator"}
MEMBERS |= {"student01": "operator", "sim-student01": "robot", "student02": "operator", "sim-student02": "robot"}
OWNERS = {"sim-student01": "student01", "sim-student02": "student02"}


@pytest.fixture(scope="session")
def made_class(tmp_path_factory):
    """Folder of the class "lab1"."""
    pytest.importorskip("cryptography")
    pytest.importorskip("websockets")
    from featherweight.robot.network.certificates import create_room

    return create_room(tmp_path_factory.mktemp("classes") / "lab1", "lab1", MEMBERS, owners=OWNERS)


@pytest.fixture
def class_folder(made_class, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(made_class, tmp_path / "class")

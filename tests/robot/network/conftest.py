"""Two rooms, made once, and each kind of relay."""

import pytest
from robot_rooms import KINDS, MEMBERS, Room


@pytest.fixture(scope="session")
def rooms(tmp_path_factory):
    """Folders of two rooms with the same names."""
    from featherweight.robot.network.certificates import create_room

    folder = tmp_path_factory.mktemp("rooms")
    return create_room(folder / "lab1", "lab1", MEMBERS), create_room(folder / "lab2", "lab2", MEMBERS)


@pytest.fixture(params=KINDS)
def room(request, rooms):
    """A running relay of the first room."""
    room = Room(request.param, *rooms)
    yield room
    room.close()

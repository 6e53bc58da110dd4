"""Folders of a room."""

import json

import pytest
from robot_rooms import MEMBERS

from featherweight.errors import ConfigError

pytest.importorskip("cryptography")


def test_a_room_s_folder_keeps_secrets_and_overwrites_nothing(rooms, tmp_path):
    from featherweight.robot.network.certificates import create_room

    folder = rooms[0]
    for secret in (folder / "ca.key", folder / "members" / "alice" / "key.pem", folder / "members" / "alice" / "token"):
        assert secret.stat().st_mode & 0o077 == 0
    assert (folder / "members" / "alice" / "token").read_text().strip() not in (folder / "relay.json").read_text()
    assert json.loads((folder / "relay.json").read_text())["room"] == "lab1"
    (tmp_path / "mine").write_text("x")
    with pytest.raises(ConfigError, match="is not empty"):
        create_room(tmp_path, "lab1", MEMBERS)
    with pytest.raises(ConfigError, match="member=eve:king is not allowed"):
        create_room(tmp_path / "new", "lab1", {"eve": "king"})
    assert not (tmp_path / "new").exists()

"""Folders of participants."""

import json
import shutil

import pytest

from featherweight.errors import ConfigError
from featherweight.robot.network.membership import Membership

pytest.importorskip("cryptography")


def test_a_folder_says_who_somebody_is(rooms):
    member = Membership.load(rooms[0] / "members" / "teacher")
    assert (member.name, member.role, member.room) == ("teacher", "instructor", "lab1")
    assert member.client_context().check_hostname


def test_damaged_folders_are_refused(rooms, tmp_path):
    with pytest.raises(ConfigError, match="is no folder of a participant"):
        Membership.load(tmp_path)
    folder = shutil.copytree(rooms[0] / "members" / "eve", tmp_path / "eve")
    (folder / "member.json").write_text(json.dumps({"name": "eve", "role": "king", "room": "lab1"}))
    with pytest.raises(ConfigError, match="role=king of .* is unknown; expected one of"):
        Membership.load(folder)
    (folder / "key.pem").unlink()
    with pytest.raises(ConfigError, match="key.pem"):
        Membership.load(folder)

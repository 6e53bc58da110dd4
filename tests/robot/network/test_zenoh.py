"""Certificates decide who connects."""

import pytest

from featherweight.errors import DeviceError
from featherweight.robot.network.connect import connect
from featherweight.robot.network.membership import Membership

pytest.importorskip("cryptography")


def test_who_has_no_certificate_of_the_room_cannot_connect(room):
    with pytest.raises(DeviceError, match="files that fw robot class init made for this room") as caught:
        connect(room.address, Membership.load(room.other / "members" / "alice"))
    assert "\n" not in str(caught.value)

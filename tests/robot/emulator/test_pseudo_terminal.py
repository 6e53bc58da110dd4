"""A pseudo-terminal in place of a kit."""

import sys

import pytest

from featherweight import robot as fwr
from featherweight.errors import DeviceError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")


def test_an_emulated_terminal_never_replaces_a_file_of_the_user(kit, tmp_path):
    path = tmp_path / "kit"
    path.write_text("mine")
    with pytest.raises(DeviceError, match="is a file of yours"):
        fwr.PseudoTerminal(kit, link=str(path))
    assert path.read_text() == "mine"

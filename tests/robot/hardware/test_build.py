"""`fw robot kit build` without its command."""

import json

import pytest

from featherweight.errors import ConfigError
from featherweight.robot.hardware.build import build_kit, figures


def test_a_folder_that_is_there_stays(tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(ConfigError, match="is there already"):
        build_kit(tmp_path)
    assert (tmp_path / "mine").read_text() == "mine"


def test_figures_tell_masses_loads_and_workspace(assembly):
    told = figures(assembly, postures=500)
    assert json.loads(json.dumps(told)) == told
    assert {load["joint"]: load["margin"] for load in told["static_load"]}[2] > 2
    assert sum(told["mass_g"].values()) < 500


@pytest.mark.slow
def test_a_build_holds_every_file_that_the_kit_needs(tmp_path, graphics):
    files, left_out = build_kit(tmp_path / "kit")
    names = {str(path.relative_to(tmp_path / "kit")) for path in files}
    assert {
        "wiring.svg",
        "assembly.pdf",
        "firmware.hex",
        "bill.json",
        "stl/base.stl",
        "step/base.step",
        "plates/plate_1.3mf",
    } <= names
    assert all(path.stat().st_size > 50 for path in files)
    assert not left_out

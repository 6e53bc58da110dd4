"""`fw robot kit bom|build|check|template` and `fw robot flash`."""

import json

import pytest

from featherweight.cli import run

pytest.importorskip("manifold3d")


def test_the_bill_is_below_a_hundred_dollars(capsys):
    assert run(["robot", "kit", "bom", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["total_usd"][1] < 100


def test_a_template_passes_the_check_and_is_not_overwritten(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["robot", "kit", "template", "gripper"]) == 0
    capsys.readouterr()
    assert run(["robot", "kit", "check", "my_gripper.py", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["is_good"]
    assert run(["robot", "kit", "template", "gripper"]) != 0
    assert "is there already" in capsys.readouterr().err


def test_a_faulty_part_ends_with_a_failure_and_its_fault(capsys, tmp_path):
    part = tmp_path / "part.stl"
    part.write_text("no mesh")
    assert run(["robot", "kit", "check", str(part)]) == 1
    assert "no mesh" in capsys.readouterr().out


def test_flash_without_a_board_says_so(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("FEATHERWEIGHT_ROBOT_HOME", str(tmp_path))
    monkeypatch.setattr("featherweight.robot.hardware.flash.list_ports", list)
    monkeypatch.setattr("featherweight.robot.hardware.flash.shutil.which", lambda name: "/bin/true")
    assert run(["robot", "flash", "--yes"]) != 0
    assert "found no board" in capsys.readouterr().err

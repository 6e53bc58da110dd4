"""`fw robot calibrate-camera`."""

import csv
import json

import pytest

from featherweight.cli import run

pytest.importorskip("mujoco")


def test_pictures_of_a_kit_give_its_offsets_and_are_saved(tmp_path, capsys, monkeypatch):
    from PIL import Image

    from featherweight.robot.sim.graphics import working_graphics

    if working_graphics() is None:
        pytest.skip("no off-screen graphics here")
    from featherweight.robot.calibration_file import load_calibration
    from featherweight.robot.sim.photographs import calibration_poses, take_pictures
    from featherweight.robot.sim.world import World

    monkeypatch.setenv("FEATHERWEIGHT_ROBOT_HOME", str(tmp_path / "home"))
    poses = calibration_poses(9)
    pictures = take_pictures(World("empty", zero_offset_deg=(1.0, -2.0, 2.0, 0.0, 3.0, 0.0), cards=True), poses)
    with (tmp_path / "angles.csv").open("w", newline="") as file:
        for i, (pose, picture) in enumerate(zip(poses, pictures, strict=True)):
            Image.fromarray(picture).save(tmp_path / f"{i}.png")
            csv.writer(file).writerow([f"{i}.png", *pose])
    arguments = ["robot", "calibrate-camera", "--pictures", str(tmp_path), "--save", "mine", "--json"]
    assert run(arguments) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["zero_offset_deg"] == pytest.approx([1, -2, 2, 0, 3], abs=0.4) and told["error_px"] < 0.5
    assert load_calibration("mine").zero_offset_deg[:5] == pytest.approx(told["zero_offset_deg"])
    # Two pictures of another size, a missing one, a line with four angles.
    for line in ("nothing.png,1,2,3,4,5", "0.png,1,2,3,4", "0.png,a,2,3,4,5"):
        (tmp_path / "angles.csv").write_text(line)
        assert run(arguments) == 2
        assert "cannot be used" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--offsets", "1,2"], "offsets=1,2 cannot be simulated"),
        (["--offsets", "1,2,3,4,90"], "cannot be simulated"),
        (["--pictures", "/nowhere"], "angles.csv cannot be used"),
    ],
)
def test_every_mistake_is_one_sentence(arguments, message, capsys):
    assert run(["robot", "calibrate-camera", *arguments]) == 2
    errors = " ".join(capsys.readouterr().err.split())
    assert message in errors and "Traceback" not in errors


def test_cameras_of_this_computer_are_listed(capsys):
    assert run(["robot", "cameras", "--json"]) == 0
    assert isinstance(json.loads(capsys.readouterr().out)["cameras"], list)


def test_pictures_are_kept_as_they_are_read(tmp_path):
    import numpy as np

    from featherweight.cli.robot_camera import is_source, read_pictures, write_pictures
    from featherweight.errors import ConfigError

    angles, pictures = [[1.0, 2, 3, 4, 5.5]], [np.full((4, 6, 3), 7, np.uint8)]
    write_pictures(tmp_path / "photos", angles, pictures)
    again, seen = read_pictures(tmp_path / "photos")
    assert again == angles and (seen[0] == 7).all()
    with pytest.raises(ConfigError, match="holds files; expected a new folder"):
        write_pictures(tmp_path / "photos", angles, pictures)
    assert [is_source(one) for one in ("front", "side", "front=/dev/video0", "/dev/video0", "test")] == [
        *(False, False, True, True, True)
    ]


@pytest.mark.slow
def test_an_emulated_kit_is_photographed_and_a_picture_without_cards_is_one_sentence(tmp_path, capsys):
    arguments = ["--camera", "desk=test", "--port", "sim", "--poses", "8", "--yes", "--pictures", str(tmp_path / "new")]
    assert run(["robot", "calibrate-camera", *arguments]) == 2
    assert "0 of 8 show the card on the gripper" in capsys.readouterr().err
    assert len((tmp_path / "new" / "angles.csv").read_text().splitlines()) == 8

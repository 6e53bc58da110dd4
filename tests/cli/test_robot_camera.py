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

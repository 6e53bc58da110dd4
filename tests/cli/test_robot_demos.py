"""`fw robot record|replay|dataset|train|eval`."""

import json

import pytest

from featherweight.cli import run

pytest.importorskip("mujoco")


def test_demonstrations_are_recorded_checked_and_replayed(tmp_path, capsys):
    demos = str(tmp_path / "demos")
    assert run(["robot", "record", "--leader", "expert", "--episodes", "2", "--out", demos, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"saved": 2, "tried": 2, "total": 2}
    assert run(["robot", "dataset", "check", demos, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["whole"] == 2
    assert run(["robot", "dataset", "info", demos, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["robot"] == "umirobot"
    assert run(["robot", "replay", demos, "1", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["end_error_deg"] <= 1


@pytest.mark.slow
def test_a_policy_is_learnt_from_demonstrations_and_evaluated(tmp_path, capsys):
    demos, folder = str(tmp_path / "demos"), str(tmp_path / "run")
    assert run(["robot", "record", "--leader", "expert", "--episodes", "2", "--out", demos]) == 0
    changes = [f"task.data={demos}", "steps=20", "task.hidden=16", "evaluate_at_start=false"]
    assert run(["robot", "train", "examples/recipes/robot_bc.yaml", *changes, "--out", folder, "--json"]) == 0
    capsys.readouterr()
    assert run(["robot", "eval", folder, "--runs", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"] == 1


def test_a_damaged_set_is_told_repaired_and_then_clean(tmp_path, capsys):
    from robot_demos import new_writer, write_episode

    writer = new_writer(tmp_path / "demos")
    for _ in range(3):
        write_episode(writer, 4)
    (tmp_path / "demos" / "data" / "chunk-000" / "file-001.parquet").write_bytes(b"")
    assert run(["robot", "dataset", "check", str(tmp_path / "demos")]) == 1
    assert "1 of 3 episodes are whole" in capsys.readouterr().out
    assert run(["robot", "dataset", "repair", str(tmp_path / "demos")]) == 0
    assert "1 of 1 episodes are whole" in capsys.readouterr().out


def test_a_hand_is_recorded_on_an_emulated_kit_for_as_long_as_told(tmp_path, capsys):
    arguments = ["--leader", "sine", "--follower", "umirobot", "--port", "sim", "--seconds", "0.5", "--out"]
    assert run(["robot", "record", *arguments, str(tmp_path / "waves"), "--task", "wave"]) == 0
    assert "1 of 1 episodes saved" in capsys.readouterr().out
    assert run(["robot", "dataset", "info", str(tmp_path / "waves"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["frames"] == 15 and told["tasks"] == ["wave"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["replay", "/nowhere"], "has no meta/info.json"),
        (["dataset", "check", "/nowhere"], "has no meta/info.json"),
        (["record", "--leader", "expert", "--fps", "20", "--out", "demos"], "fps=20 is not the expert's"),
        (
            ["record", "--leader", "expert", "--size", "97x64", "--out", "demos"],
            "size=97x64 is none; expected",
        ),
        (["record", "--leader", "expert", "--size", "1920x1080", "--out", "demos"], "size=1920x1080 cannot be drawn"),
        (
            ["record", "--leader", "sine", "--follower", "umirobot", "--camera", "top", "--out", "d"],
            "camera=top is the simulator's; expected one beside the kit",
        ),
        (["eval", "/nowhere"], "holds no policy.json"),
        (["eval", "--offsets", "1,2"], "fw robot eval: offsets=1,2 cannot be simulated"),
        (["eval", "--scene", "student"], "scene=student has no cube"),
    ],
)
def test_every_mistake_is_one_sentence(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["robot", *arguments]) in (1, 2)
    errors = " ".join(capsys.readouterr().err.split())
    assert message in errors and "Traceback" not in errors


@pytest.mark.slow  # six seconds of real time
def test_a_kit_with_two_cameras_is_recorded_and_each_slow_one_is_told(tmp_path, capsys):
    from robot_camera import film

    slow = film(tmp_path / "slow.ts", "64x48", fps=10, seconds=3)
    arguments = ["--leader", "sine", "--follower", "umirobot", "--port", "sim", "--seconds", "1", "--episodes", "2"]
    cameras = ["--camera", "front=test", "--camera", f"side={slow}", "--out", str(tmp_path / "demos")]
    assert run(["robot", "record", *arguments, *cameras]) == 0
    told = capsys.readouterr().out
    assert "\n2 of " in told and "Camera side is slower than 30 frames a second" in told
    assert run(["robot", "dataset", "check", str(tmp_path / "demos"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["whole"] == 2
    from featherweight.robot.recording.demo_dataset import DemoDataset

    data = DemoDataset(tmp_path / "demos")
    assert data[0]["observation.images.side"].shape == (3, 48, 64) and len(data) == 60
    # The other set has another size: refused, nothing is touched.
    assert run(["robot", "record", *arguments, "--camera", "front=test", "--camera", "side=test", *cameras[4:]]) == 2
    assert "features=" in capsys.readouterr().err

"""`fw bev`: draw, look at labels, train, judge, predict, export."""

import json

import pytest
import yaml
from PIL import Image

from featherweight.cli import run

pytest.importorskip("shapely")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "world"
    assert run(["bev", "synth", str(folder), "--scenes", "10", "--frames", "2", "--image-size", "224x128"]) == 0
    return folder


def width_of(path: str) -> int:
    with Image.open(path) as image:
        return image.width


def test_a_drawn_world_becomes_a_map_by_commands_alone(world, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    assert run(["bev", "labels", str(world), "--frame", "3"]) == 0
    assert "drivable_area" in capsys.readouterr().out and width_of("labels.png") > 500
    recipe = {"task": {"name": "bev", "data": "x"}, "steps": 1, "micro_batch_size": 1, "memory_steps": []}
    (tmp_path / "bev.yaml").write_text(yaml.safe_dump(recipe))
    assert run(["bev", "train", "bev.yaml", f"task.data={world}", "task.limit_sequences=1", "--out", "bev"]) == 0
    capsys.readouterr()
    assert run(["bev", "eval", "bev", "--data", str(world), "--json"]) == 0
    judged = json.loads(capsys.readouterr().out)
    assert judged["frames"] == 4 and judged["protocol"].startswith("pon14/exact/0.5m/1cam")
    assert run(["bev", "eval", "bev", "--data", str(world)]) == 0
    assert "mean of classes" in capsys.readouterr().out
    picture = next((world / "samples" / "CAM_FRONT").glob("*.jpg"))
    (tmp_path / "K.json").write_text(json.dumps({"K": [[177, 0, 114], [0, 180, 70], [0, 0, 1]]}))
    assert run(["bev", "predict", "bev", str(picture), "--intrinsics", "K.json", "-o", "map.png"]) == 0
    assert width_of("map.png") > 300
    assert run(["bev", "info", "bev"]) == 0
    assert '"1 drives"' in capsys.readouterr().out


def test_wrong_input_is_answered_in_a_sentence(world, tmp_path, capsys):
    (tmp_path / "network").mkdir()
    (tmp_path / "network" / "config.json").write_text('{"model_type": "focusbev"}')
    for command, message, status in [
        (["bev", "synth", str(tmp_path / "a"), "--image-size", "big"], "image_size='big'", 2),
        (["bev", "synth", str(world)], "is not empty", 2),
        (["bev", "labels", str(world), "--mode", "pom"], "mode='pom'", 2),
        (["bev", "labels", str(world), "--frame", "999"], "frame=999 of 20", 2),
        (["bev", "eval", str(tmp_path / "network")], "data=None", 2),
        (["bev", "eval", str(tmp_path), "--data", str(world)], "holds no trained network", 1),
        (["bev", "predict", str(tmp_path), "nothing.jpg"], "holds no trained network", 1),
        (["bev", "export", str(tmp_path)], "holds no trained network", 1),
    ]:
        assert run(command) == status, command
        assert message in " ".join(capsys.readouterr().err.split()), command

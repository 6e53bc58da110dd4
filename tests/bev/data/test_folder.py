import json

import numpy as np
import pytest
from PIL import Image

from featherweight.bev.data.folder import FolderSource, read_poses
from featherweight.bev.data.sources import open_source
from featherweight.bev.grid import BEVGridConfig
from featherweight.bev.options import BEVConfig
from featherweight.bev.task import BEVTask
from featherweight.errors import ConfigError

GRID = BEVGridConfig(resolution=0.5, anchor="center")


@pytest.fixture
def folder(tmp_path):
    for name in ("frames", "labels"):
        (tmp_path / name).mkdir()
    for number in range(10):
        Image.new("RGB", (224, 128), (20 * number, 0, 0)).save(tmp_path / "frames" / f"{number:03d}.jpg")
        bits = np.full(GRID.shape, 1, np.uint16)
        bits[:, :10] = 1 << 14
        Image.fromarray(bits).save(tmp_path / "labels" / f"{number:03d}.png")
    calibration = {"K": [[177, 0, 112], [0, 177, 64], [0, 0, 1]], "camera_to_ego": np.eye(4).tolist()}
    calibration["camera_to_ego"] = [[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 1.4], [0, 0, 0, 1]]
    (tmp_path / "calibration.json").write_text(json.dumps(calibration))
    return tmp_path


def test_own_frames_train_as_every_other_data_set_does(folder):
    task = BEVTask(BEVConfig(data=str(folder)), seed=0)
    assert task.split == "time" and len(task.samples["train"]) == 8 and len(task.samples["val"]) == 2
    batch = next(task.batches("held_out", micro_batch_size=2, seed=0))
    assert batch["labels"][:, 0].sum() == 2 * 98 * 90 and not batch["seen"][:, :, :10].any()


def test_poses_make_a_memory_possible_and_no_poses_none(folder):
    from featherweight.bev.samples import is_continuous

    frames = FolderSource(folder).frames
    assert not is_continuous(frames[0], frames[1])
    lines = [json.dumps({"t": n * 0.5, "x": float(n), "y": 0.0, "yaw": 0.0}) for n in range(10)]
    (folder / "poses.jsonl").write_text("\n".join(lines))
    frames = FolderSource(folder).frames
    assert is_continuous(frames[0], frames[1]) and frames[3].ego_to_world[0, 3] == 3.0


def test_what_is_missing_or_does_not_fit_is_named(folder):
    source = open_source(folder)
    assert isinstance(source, FolderSource)
    with pytest.raises(ConfigError, match="expected 200 x 196"):
        source.stored_labels(source.frames[0], BEVGridConfig())
    (folder / "labels" / "000.png").unlink()
    with pytest.raises(ConfigError, match="has no labels"):
        source.stored_labels(source.frames[0], GRID)
    (folder / "poses.jsonl").write_text('{"t": 0, "pose": [1]}')
    with pytest.raises(ConfigError, match="line 1"):
        read_poses(folder / "poses.jsonl", 10)
    (folder / "calibration.json").write_text("{}")
    with pytest.raises(ConfigError, match="cannot be read as a calibration"):
        FolderSource(folder)

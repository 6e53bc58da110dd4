import json

import numpy as np
import pytest
import torch
from PIL import Image

from featherweight.bev.data.folder import FolderSource, read_poses
from featherweight.bev.data.sources import open_source
from featherweight.bev.grid import BEVGridConfig
from featherweight.bev.options import BEVConfig
from featherweight.bev.step import forward
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


def test_the_network_has_the_classes_of_its_data_and_other_data_are_refused(folder, tmp_path):
    calibration = json.loads((folder / "calibration.json").read_text())
    (folder / "calibration.json").write_text(json.dumps({**calibration, "classes": "argo8"}))
    task = BEVTask(BEVConfig(data=str(folder)), seed=0)
    assert task.model_config.classes == "argo8" and len(task.model_config.priors) == 8
    assert task.protocol().startswith("argo8/") and "/1cam/" in task.protocol()
    loss, _ = task.loss(task.build_model(), next(task.batches("held_out", micro_batch_size=1, seed=0)))
    assert loss.isfinite()
    task.save_model(task.build_model(), tmp_path / "model")
    (folder / "calibration.json").write_text(json.dumps(calibration))
    with pytest.raises(ConfigError, match="has the classes pon14, but the checkpoint was trained with argo8"):
        BEVTask(BEVConfig(data=str(folder), checkpoint=str(tmp_path / "model")), seed=0)


def test_a_memory_added_to_a_trained_network_changes_nothing_at_first(folder, tmp_path):
    task = BEVTask(BEVConfig(data=str(folder)), seed=0)
    plain = task.build_model().eval()
    task.save_model(plain, tmp_path / "model")
    options = BEVConfig(data=str(folder), checkpoint=str(tmp_path / "model"), model={"memory_length": 2})
    grown = BEVTask(options, seed=0)
    model = grown.build_model().eval()
    assert model.fusion is not None and grown.model_config.trained_sequences == ["earlier"]
    batch = next(grown.batches("held_out", micro_batch_size=1, seed=0))
    with torch.no_grad():
        expected, found = (forward(one, batch, task.config.loss).logits for one in (plain, model))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_frame_that_is_no_picture_is_named(folder):
    (folder / "frames" / "003.jpg").write_bytes(b"hello")
    with pytest.raises(ConfigError, match=r"003\.jpg' cannot be read as a picture"):
        FolderSource(folder)

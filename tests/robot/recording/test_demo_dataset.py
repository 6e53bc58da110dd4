"""Reading data sets, ours and LeRobot's."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from robot_demos import FPS, frame, new_writer, write_episode

from featherweight.errors import ConfigError
from featherweight.robot.recording.demo_dataset import DemoDataset

pytest.importorskip("av")


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    root = tmp_path_factory.mktemp("demos") / "demos"
    writer = new_writer(root, cameras=True)
    for length, task in ((12, "wave"), (8, "rest"), (10, "wave")):
        write_episode(writer, length, task)
    return root


def test_every_frame_comes_back_with_its_picture_and_its_task(demos):
    data = DemoDataset(demos)
    assert len(data) == 30 and data.tasks == ["wave", "rest"]
    for index, episode, number in ((0, 0, 0), (11, 0, 11), (12, 1, 0), (19, 1, 7), (29, 2, 9), (-1, 2, 9)):
        item, (values, picture) = data[index], frame(number, episode)
        assert item["frame_index"] == number and item["episode_index"] == episode
        assert item["observation.state"].tolist() == values["observation.state"]
        assert item["action"].dtype == np.float32 and item["timestamp"] == np.float32(number / FPS)
        assert item["task"] == ("rest" if episode == 1 else "wave")
        shown = item["observation.images.front"]
        # Lossy video of an even picture: a few levels of 256.
        assert shown.shape == (3, 32, 48) and np.abs(255 * shown - picture[0, 0, 0]).max() < 12
    with pytest.raises(IndexError):
        data[30]


def test_times_before_and_behind_an_episode_are_padded_and_marked(demos):
    data = DemoDataset(demos, {"action": [-1 / FPS, 0, 1 / FPS], "observation.images.front": [0.0, 2 / FPS]})
    item = data[19]
    assert item["action"].shape == (3, 6) and item["action_is_pad"].tolist() == [False, False, True]
    assert (item["action"][1] == item["action"][2]).all() and (item["action"][0] != item["action"][1]).any()
    assert item["observation.images.front"].shape == (2, 3, 32, 48)
    assert item["observation.images.front_is_pad"].tolist() == [False, True]
    with pytest.raises(ConfigError, match="no multiples of 1/30"):
        DemoDataset(demos, {"action": [0.01]})
    with pytest.raises(ConfigError, match="acton is no feature.*Did you mean 'action'"):
        DemoDataset(demos, {"acton": [0.0]})


def test_torch_loads_batches(demos):
    from torch.utils.data import DataLoader

    batch = next(iter(DataLoader(DemoDataset(demos), batch_size=4)))
    assert batch["observation.images.front"].shape == (4, 3, 32, 48) and batch["action"].shape == (4, 6)


def test_what_is_no_data_set_is_one_sentence(tmp_path, demos):
    with pytest.raises(ConfigError, match=r"has no meta/info.json; expected a LeRobot v3.0 data set"):
        DemoDataset(tmp_path)
    (tmp_path / "meta").mkdir()
    info = json.loads((demos / "meta" / "info.json").read_text())
    (tmp_path / "meta" / "info.json").write_text(json.dumps(info | {"codebase_version": "v2.1"}))
    with pytest.raises(ConfigError, match=r"codebase_version=v2.1 .* is not supported"):
        DemoDataset(tmp_path)
    (tmp_path / "meta" / "info.json").write_text("{")
    with pytest.raises(ConfigError, match="is damaged"):
        DemoDataset(tmp_path)
    with pytest.raises(ConfigError, match="episode=3 is not in .*; expected 0 to 2"):
        DemoDataset(demos).episode(3)


PROGRAM = """
import json, sys
import numpy as np
import torch
# The operators of torchvision may be built for another torch; none is used here.
torch.library.register_fake = lambda *a, **k: (lambda function: function)
import av, torchvision
class Reader:  # newer releases of torchvision have lost theirs, which LeRobot calls
    def __init__(self, path, stream):
        self.container = av.open(path)
        self.frames = self.container.decode(video=0)
    def seek(self, time_s, keyframes_only=False):
        stream = self.container.streams.video[0]
        self.container.seek(int(time_s / stream.time_base), stream=stream, backward=True)
        self.frames = self.container.decode(video=0)
        return self
    def __iter__(self):
        for frame in self.frames:
            yield {"data": torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1), "pts": frame.time}
torchvision.io.VideoReader = Reader
from lerobot.datasets.lerobot_dataset import LeRobotDataset
ours = LeRobotDataset("test/ours", root=sys.argv[1], video_backend="pyav")
item, last = ours[0], ours[len(ours) - 1]
told = {
    "length": len(ours), "episodes": ours.num_episodes, "fps": ours.fps, "task": item["task"],
    "first": item["observation.state"].tolist(), "last": last["action"].tolist(), "time": float(last["timestamp"]),
    "picture": float(last["observation.images.front"].mean()), "shape": list(last["observation.images.front"].shape),
    "mean": ours.meta.stats["action"]["mean"].tolist(), "count": ours.meta.stats["action"]["count"].tolist(),
}
features = {
    "action": {"dtype": "float32", "shape": (2,), "names": ["a", "b"]},
    "observation.state": {"dtype": "float32", "shape": (2,), "names": ["a", "b"]},
    "observation.images.top": {"dtype": "video", "shape": (64, 64, 3), "names": ["height", "width", "channels"]},
}
theirs = LeRobotDataset.create("test/theirs", 20, features, root=sys.argv[2], robot_type="so101", vcodec="h264")
for episode in range(2):
    for i in range(15):
        picture = np.full((64, 64, 3), 10 * i, dtype=np.uint8)
        state = np.array([i, episode], dtype=np.float32)
        row = {"action": state + 1, "observation.state": state, "observation.images.top": picture}
        theirs.add_frame(row | {"task": "lift"})
    theirs.save_episode()
theirs.finalize()
print("TOLD " + json.dumps(told))
"""


@pytest.mark.slow
def test_lerobot_reads_ours_and_we_read_lerobot_s(demos, tmp_path):
    """FEATHERWEIGHT_LEROBOT is a folder with lerobot 0.4 (it wants another torch than we do)."""
    folder = os.environ.get("FEATHERWEIGHT_LEROBOT")
    if folder is None:
        pytest.skip("FEATHERWEIGHT_LEROBOT is not set; run pip install --target FOLDER lerobot==0.4.4 and set it")
    environment = {**os.environ, "PYTHONPATH": folder, "HF_LEROBOT_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(demos), str(tmp_path / "theirs")],
        capture_output=True,
        text=True,
        timeout=600,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("TOLD"))[5:])
    data = DemoDataset(demos)
    assert (told["length"], told["episodes"], told["fps"], told["task"]) == (30, 3, 30, "wave")
    assert told["first"] == data[0]["observation.state"].tolist() and told["last"] == data[29]["action"].tolist()
    assert told["shape"] == [3, 32, 48] and told["picture"] == pytest.approx(
        float(data[29]["observation.images.front"].mean()), abs=0.01
    )
    assert told["mean"] == pytest.approx(data.columns["action"].mean(axis=0).tolist(), rel=1e-5)
    assert told["count"] == [30]

    theirs = DemoDataset(tmp_path / "theirs")
    assert len(theirs) == 30 and theirs.fps == 20 and theirs.tasks == ["lift"]
    assert theirs[16]["observation.state"].tolist() == [1.0, 1.0]
    assert abs(255 * float(theirs[29]["observation.images.top"].mean()) - 140) < 6

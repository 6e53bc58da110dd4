import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import nuscenes_tables
import pytest

from featherweight.bev.data.nuscenes import NuScenesIndex
from featherweight.errors import CheckpointError, ConfigError


def test_frames_are_in_order_of_drive_and_time_and_their_files_exist(index):
    assert len(index.frames) == 40
    for before, after in zip(index.frames[:-1], index.frames[1:], strict=True):
        assert before.sequence < after.sequence or before.timestamp < after.timestamp
    frame = index.frames[-1]
    assert frame.image.is_file() and (frame.width, frame.height) == (224, 128)
    assert frame.index == 39 and index.frames[39].token == frame.token


def test_a_second_opening_reads_the_cache_and_finds_the_same(world, tmp_path):
    first = NuScenesIndex(world, cache=tmp_path)
    (kept,) = tmp_path.glob("*.npz")
    stamp = kept.stat().st_mtime_ns
    second = NuScenesIndex(world, cache=tmp_path)
    assert kept.stat().st_mtime_ns == stamp
    assert np.array_equal(first.boxes(first.frames[5]).centers, second.boxes(second.frames[5]).centers)
    kept.write_bytes(b"damaged")
    third = NuScenesIndex(world, cache=tmp_path)
    assert len(third.frames) == 40 and kept.stat().st_size > 1000


def test_boxes_are_those_of_the_frames_moment(world, index):
    (version,) = (path for path in world.iterdir() if path.name.startswith("v1.0"))
    table = json.loads((version / "sample_annotation.json").read_text())
    data = json.loads((version / "sample_data.json").read_text())
    frame = index.frames[7]
    sample = next(one["sample_token"] for one in data if one["token"] == frame.token)
    truth = [one for one in table if one["sample_token"] == sample]
    boxes = index.boxes(frame)
    assert len(boxes) == len(truth)
    np.testing.assert_array_equal(boxes.centers, [one["translation"] for one in truth])
    np.testing.assert_array_equal(boxes.sizes, [one["size"] for one in truth])


def test_laser_points_lie_on_the_ground_below_the_camera(index):
    points = index.lidar_points(index.frames[3])
    near = points[(points[:, 2] > 4) & (points[:, 2] < 15) & (np.abs(points[:, 0]) < 2)]
    assert np.median(near[:, 1]) == pytest.approx(1.51, abs=0.1), "the camera stands 1.51 m above the road"


def test_what_is_missing_or_unknown_is_named(world, tmp_path):
    with pytest.raises(ConfigError, match="no folder"):
        NuScenesIndex(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="version='v9'"):
        NuScenesIndex(world, "v9", cache=tmp_path)
    with pytest.raises(ConfigError, match="CAM_FRONT_RIGHT"):
        NuScenesIndex(world, cameras=["CAM_RIGHT"], cache=tmp_path)
    with pytest.raises(ConfigError, match="no key frame of CAM_BACK"):
        NuScenesIndex(world, cameras=["CAM_BACK"], cache=tmp_path)


def test_incomplete_tables_are_refused(world, tmp_path):
    copy = tmp_path / "copy"
    (version,) = (path for path in world.iterdir() if path.name.startswith("v1.0"))
    shutil.copytree(version, copy / version.name)
    poses = copy / version.name / "ego_pose.json"
    records = json.loads(poses.read_text())
    poses.write_text(json.dumps(records[1:]))
    with pytest.raises(CheckpointError, match=records[0]["token"]):
        NuScenesIndex(copy, cache=tmp_path)
    poses.unlink()
    with pytest.raises(CheckpointError, match=r"lacks ego_pose\.json"):
        NuScenesIndex(copy, cache=tmp_path)


_OPEN = """
import re, sys, time
from pathlib import Path
from featherweight.bev.data.nuscenes import CAMERAS, NuScenesIndex

begun = time.process_time()
index = NuScenesIndex(sys.argv[1], cameras=CAMERAS, cache=Path(sys.argv[2]))
seconds = time.process_time() - begun
assert len(index.frames) == 6 * 34149 and len(index.boxes(index.frames[-1])) > 20
print(seconds, int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from /proc")
def test_tables_of_the_full_set_need_little_memory_and_their_index_opens_at_once(tmp_path):
    """A minute of processor time: 34,149 samples, 2.6 million readings, all six cameras.

    Mutation: a table read as a whole needs more than 3 GB.
    """
    root = nuscenes_tables.write_tables(tmp_path / "root" / "v1.0-trainval").parent

    def opened() -> list[float]:
        command = [sys.executable, "-c", _OPEN, str(root), str(tmp_path / "cache")]
        return [float(word) for word in subprocess.check_output(command, text=True).split()]

    _, built_bytes = opened()
    assert built_bytes < 1.5e9  # measured: 0.54e9
    seconds, opened_bytes = opened()
    assert seconds < 2 and opened_bytes < built_bytes  # processor seconds, imports of torch left out; measured: 0.8

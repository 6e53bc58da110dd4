"""Episodes are whole or not there, whatever happens to their writer."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from robot_demos import frame, new_writer, write_episode

from featherweight.errors import ConfigError
from featherweight.robot.recording.check import check
from featherweight.robot.recording.demo_dataset import DemoDataset
from featherweight.robot.recording.layout import robot_features
from featherweight.robot.recording.writer import DemoWriter

pytest.importorskip("av")


def test_episodes_are_appended_by_later_writers_of_the_same_kind(tmp_path):
    assert write_episode(new_writer(tmp_path / "demos", cameras=True), 7) == 0
    assert write_episode(new_writer(tmp_path / "demos", cameras=True), 5, "rest") == 1

    info = json.loads((tmp_path / "demos" / "meta" / "info.json").read_text())
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (2, 12, 2)
    assert info["splits"] == {"train": "0:2"} and info["codebase_version"] == "v3.0"
    assert check(tmp_path / "demos").problems == []


def test_sets_of_another_kind_and_folders_with_other_things_are_left_alone(tmp_path):
    write_episode(new_writer(tmp_path / "demos"), 5)
    with pytest.raises(ConfigError, match="features=.* differs from that"):
        new_writer(tmp_path / "demos", cameras=True)
    with pytest.raises(ConfigError, match="fps=10 differs from that of .* 30; expected a set of the same kind"):
        DemoWriter(tmp_path / "demos", 10, "umirobot", robot_features())
    with pytest.raises(ConfigError, match="robot_type=so101 differs"):
        DemoWriter(tmp_path / "demos", 30, "so101", robot_features())
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds files that are no data set"):
        new_writer(tmp_path / "thesis")


def test_a_frame_that_is_not_finite_or_has_no_picture_is_refused_and_the_episode_goes_on(tmp_path):
    writer = new_writer(tmp_path / "demos", cameras=True)
    values, picture = frame(0, 0)
    writer.add(values, {"front": picture})
    with pytest.raises(ConfigError, match="action=.* cannot be stored"):
        writer.add({**values, "action": [np.nan] * 6}, {"front": picture})
    with pytest.raises(ConfigError, match="picture of front=None is wrong"):
        writer.add(values, {})
    assert writer.frames == 1 and writer.save("wave") == 0
    with pytest.raises(ConfigError, match="frames=0 make no episode"):
        writer.save("wave")


def test_a_discarded_episode_leaves_nothing(tmp_path):
    writer = new_writer(tmp_path / "demos", cameras=True)
    write_episode(writer, 5)
    before = sorted(path for path in (tmp_path / "demos").rglob("*") if path.is_file())
    writer.add(*(lambda f: (f[0], {"front": f[1]}))(frame(0, 1)))
    writer.discard()
    assert sorted(path for path in (tmp_path / "demos").rglob("*") if path.is_file()) == before


@pytest.mark.parametrize("step", range(9))
def test_a_writer_that_dies_between_any_two_renames_loses_one_episode_at_most(tmp_path, monkeypatch, step):
    root = tmp_path / "demos"
    writer = new_writer(root, cameras=True)
    write_episode(writer, 6)
    renames, really = [], os.replace

    def replace(source, target):
        if len(renames) == step:
            raise KeyboardInterrupt
        renames.append(target)
        really(source, target)

    monkeypatch.setattr(os, "replace", replace)
    try:
        write_episode(writer, 6, "another")
        saved = 2
    except KeyboardInterrupt:
        saved = 1
    monkeypatch.undo()

    assert len(DemoDataset(root).episodes) >= saved
    write_episode(new_writer(root, cameras=True), 4)
    data = DemoDataset(root)
    assert len(data.episodes) in (saved + 1, 3) and data[len(data) - 1]["frame_index"] == 3
    assert check(root).problems == []
    assert len({row["data/file_index"] for row in data.episodes}) == len(data.episodes)


def test_a_full_disk_is_one_sentence_and_every_finished_episode_is_kept(tmp_path, monkeypatch):
    writer = new_writer(tmp_path / "demos", cameras=True)
    write_episode(writer, 6)

    def full(source, target):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(ConfigError, match="No space left on device.*Episode 1 is lost, the 1 before it are whole"):
            write_episode(writer, 6)
    assert write_episode(writer, 4) == 1
    assert check(tmp_path / "demos").problems == [] and len(DemoDataset(tmp_path / "demos")) == 10


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 2 MB, or a skip where none can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a disk of 2 MB cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up_while_recording_keeps_every_finished_episode(small_disk):
    writer, saved = new_writer(small_disk / "demos", cameras=True), 0
    (small_disk / "other").write_bytes(b"0" * 1_600_000)
    with pytest.raises(ConfigError, match=r"No space left on device.*Episode \d+ is lost, the \d+ before it are whole"):
        while True:
            write_episode(writer, 20)
            saved += 1
    assert saved > 1
    data = DemoDataset(small_disk / "demos")
    assert len(data.episodes) == saved and data[len(data) - 1]["observation.images.front"].shape == (3, 32, 48)
    assert check(small_disk / "demos").problems == []
    # With space again, the same writer goes on.
    (small_disk / "other").unlink()
    assert write_episode(writer, 5) == saved and check(small_disk / "demos").problems == []


PROGRAM = """
import sys
sys.path.insert(0, sys.argv[2])
from robot_demos import new_writer, write_episode
writer = new_writer(sys.argv[1], cameras=True)
print("ready", len(writer.rows), flush=True)
while True:
    print("saved", write_episode(writer, 10), flush=True)
"""


@pytest.mark.slow
def test_fifty_killed_writers_lose_no_finished_episode(tmp_path):
    root, chance, saved = tmp_path / "demos", random.Random(0), 0
    for _ in range(50):
        reference = os.path.dirname(sys.modules["robot_demos"].__file__)
        writer = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(root), reference], stdout=subprocess.PIPE, text=True
        )
        assert int(writer.stdout.readline().split()[1]) >= saved
        for _ in range(chance.randint(0, 2)):
            saved = int(writer.stdout.readline().split()[1]) + 1
        time.sleep(chance.uniform(0.0, 0.2))
        os.kill(writer.pid, signal.SIGKILL)
        words = writer.communicate()[0].split()
        saved = max([saved, *(int(word) + 1 for word in words[1::2])])
        data = DemoDataset(root)
        assert len(data.episodes) >= saved
        assert len(data) == 0 or data[len(data) - 1]["observation.images.front"].shape == (3, 32, 48)

    write_episode(new_writer(root, cameras=True), 3)
    result = check(root)
    assert result.problems == [] and result.whole == result.episodes > saved > 20


LONG_PROGRAM = """
import sys, time
sys.path.insert(0, sys.argv[2])
import numpy as np
from robot_demos import frame
from featherweight.robot.recording.layout import robot_features
from featherweight.robot.recording.writer import DemoWriter
writer = DemoWriter(sys.argv[1], 30, "umirobot", robot_features(), {"front": (240, 320)})
wall = np.random.default_rng(0).integers(0, 255, (240, 320, 3), dtype=np.uint8) // 8 + 100
print("ready", len(writer.rows), flush=True)
while len(writer.rows) < 20:
    for i in range(300):
        picture = wall.copy()
        picture[40:80, (7 * i) % 280 : (7 * i) % 280 + 40] = (200, 40, 30)
        writer.add(frame(i, len(writer.rows))[0], {"front": picture})
        time.sleep(0.002)  # thirty times as fast as an arm
    print("saved", writer.save("wave"), flush=True)
"""


@pytest.mark.slow
def test_twenty_episodes_of_ten_seconds_survive_fifty_kills_at_random_instants(tmp_path):
    root, chance, told, episode_s = tmp_path / "demos", random.Random(0), 0, 1.5
    reference = os.path.dirname(sys.modules["robot_demos"].__file__)
    command = [sys.executable, "-c", LONG_PROGRAM, str(root), reference]
    for kills in range(51):
        began_s = time.monotonic()
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert int(writer.stdout.readline().split()[1]) >= told
        starting_s, is_last = time.monotonic() - began_s, kills == 50
        if is_last:
            assert writer.wait(600) == 0
        else:
            # Up to two episodes; most of these instants lie within one, some within the saving of one.
            time.sleep(chance.uniform(0.0, 2 * max(episode_s, 0.5 * starting_s)))
            os.kill(writer.pid, signal.SIGKILL)
        words = writer.communicate()[0].split()
        told = max([told, *(int(word) + 1 for word in words[1::2])])
        data = DemoDataset(root)
        assert len(data.episodes) >= told and len(data) == 300 * len(data.episodes)
        if len(data):
            assert data[len(data) - 1]["observation.images.front"].shape == (3, 240, 320)
        if told >= 18 and not is_last:
            shutil.rmtree(root)  # so that later kills meet unfinished sets, too
            told = 0

    result = check(root)
    assert result.problems == [] and result.whole == result.episodes == 20 and result.frames == 6000


FULL = """
import resource, sys
import numpy as np
from robot_demos import frame, new_writer, write_episode
from featherweight.errors import ConfigError
from featherweight.robot.recording.check import check
writer, random = new_writer(sys.argv[1], cameras=True), np.random.default_rng(0)
write_episode(writer, 6)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)  # as a disk that is full from there on
for i in range(200):
    writer.add(frame(i, 1)[0], {"front": random.integers(0, 255, (32, 48, 3), dtype=np.uint8)})
try:
    writer.save("wave")
except ConfigError as error:
    print(error)
print(check(sys.argv[1]).whole, writer.frames)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
@pytest.mark.parametrize("size", [0, 30_000])
def test_a_disk_that_is_full_before_or_in_the_middle_of_a_video_is_one_sentence(size, tmp_path):
    """A packet after a head that could not be written once ended the whole process, with the arm in it."""
    reference = Path(__file__).parents[2] / "reference"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(reference), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "demos"), str(size)],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-300:]
    assert "cannot be written" in done.stdout and "Episode 1 is lost, the 1 before it are whole" in done.stdout
    assert done.stdout.splitlines()[-1] == "1 0"

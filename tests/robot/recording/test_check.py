"""Damage is found and cut out; what is whole stays."""

import pytest
from robot_demos import new_writer, write_episode

from featherweight.errors import ConfigError
from featherweight.robot.recording.check import check, describe, repair
from featherweight.robot.recording.demo_dataset import DemoDataset

pytest.importorskip("av")


@pytest.fixture
def demos(tmp_path):
    writer = new_writer(tmp_path / "demos", cameras=True)
    for _ in range(4):
        write_episode(writer, 6)
    return tmp_path / "demos"


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: truncate(root / "data/chunk-000/file-002.parquet"), "expected a whole parquet file"),
        (
            lambda root: truncate(root / "videos/observation.images.front/chunk-000/file-002.mp4"),
            "expected a whole video",
        ),
        (lambda root: (root / "videos/observation.images.front/chunk-000/file-002.mp4").unlink(), "it is not there"),
        (lambda root: truncate(root / "meta/episodes/chunk-000/file-002.parquet"), "expected a whole parquet file"),
    ],
)
def test_damage_is_found_and_the_whole_episodes_before_it_are_kept(demos, damage, message):
    damage(demos)
    found = check(demos)
    assert found.whole == 2 and any(message in problem for problem in found.problems)

    assert repair(demos).problems == []
    data = DemoDataset(demos)
    assert len(data) == 12 and data[11]["observation.images.front"].shape == (3, 32, 48)
    assert data.info["total_episodes"] == 2
    # Nothing is thrown away, and recording goes on.
    assert list(demos.parent.glob("demos-removed-*/data/chunk-000/file-003.parquet"))
    assert write_episode(new_writer(demos, cameras=True), 5) == 2 and check(demos).problems == []


def test_a_clean_set_is_left_alone(demos):
    before = {path: path.stat().st_mtime_ns for path in demos.rglob("*")}
    assert repair(demos).problems == [] and {path: path.stat().st_mtime_ns for path in demos.rglob("*")} == before


def test_a_set_is_described(demos, tmp_path):
    told = describe(demos)
    assert told["episodes"] == 4 and told["duration_s"] == pytest.approx(24 / 30) and told["tasks"] == ["wave"]
    assert told["features"]["action"] == "float32 [6]"
    with pytest.raises(ConfigError, match="has no meta/info.json"):
        repair(tmp_path)

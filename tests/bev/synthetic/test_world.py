import hashlib
import json

import numpy as np
import pytest

from featherweight.bev.synthetic.rig import WorldConfig
from featherweight.bev.synthetic.world import build_drive, write_world
from featherweight.errors import ConfigError

SMALL = WorldConfig(scenes=1, frames=2, image_width=96, image_height=54, pitch_jitter_deg=0.3)


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_same_seed_gives_the_same_bytes_and_another_one_does_not(tmp_path):
    first = digests(write_world(tmp_path / "a", SMALL))
    assert first == digests(write_world(tmp_path / "b", SMALL))
    other = digests(write_world(tmp_path / "c", SMALL.model_copy(update={"seed": 1})))
    assert other.keys() & first.keys() and other != first


def test_a_drive_does_not_depend_on_the_number_of_drives():
    few, many = WorldConfig(scenes=2, frames=4), WorldConfig(scenes=12, frames=4)
    np.testing.assert_array_equal(build_drive(few, 1).places(0.5), build_drive(many, 1).places(0.5))


def test_every_table_of_the_format_is_there_and_its_chains_are_whole(world):
    (version,) = (path for path in world.iterdir() if path.name.startswith("v1.0"))
    tables = {path.stem: json.loads(path.read_text()) for path in version.glob("*.json")}
    assert len(tables) == 13
    for name in ("sample", "sample_data", "sample_annotation"):
        by_token = {record["token"]: record for record in tables[name]}
        assert len(by_token) == len(tables[name])
        for record in tables[name]:
            if record["next"]:
                assert by_token[record["next"]]["prev"] == record["token"]
    instances = {record["token"]: record for record in tables["instance"]}
    counted = dict.fromkeys(instances, 0)
    for record in tables["sample_annotation"]:
        counted[record["instance_token"]] += 1
    assert all(instances[token]["nbr_annotations"] == count for token, count in counted.items())
    assert {record["visibility_token"] for record in tables["sample_annotation"]} == {"1", "2", "3", "4"}
    assert any(record["num_lidar_pts"] for record in tables["sample_annotation"])


def test_no_two_vehicles_stand_in_one_another():
    shapely = pytest.importorskip("shapely")
    from featherweight.bev.synthetic.streets import rectangle

    config = WorldConfig(scenes=10, frames=40)
    for number in range(4):
        drive = build_drive(config, number)
        ego = drive.ego(0.0)
        car = rectangle(ego[0, 3], ego[1, 3], np.arctan2(ego[1, 0], ego[0, 0]), 4.6, 1.9)
        for seconds in (0.0, 10.0):
            places = drive.places(seconds)
            boxes = [
                rectangle(*place, thing.size[1], thing.size[0])
                for thing, place in zip(drive.things, places, strict=True)
                if thing.category.startswith("vehicle.") and thing.speed is not None and thing.size[1] > 3
            ]
            touching = sum(shapely.intersects(a, b) for n, a in enumerate(boxes) for b in boxes[:n])
            assert touching == 0
        assert not any(shapely.intersects(car, box) for box in boxes)


def test_a_folder_that_holds_something_is_not_overwritten(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match="not empty"):
        write_world(tmp_path, SMALL)
    assert (tmp_path / "mine.txt").read_text() == "keep"

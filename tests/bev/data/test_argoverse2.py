"""A log made here in Argoverse 2's layout: what is placed in the world must come out where it was placed."""

import json

import numpy as np
import pytest
from PIL import Image

from featherweight.bev.data.argoverse2 import Argoverse2
from featherweight.bev.data.sources import open_source
from featherweight.bev.grid import BEVGridConfig
from featherweight.bev.labels import make_labels
from featherweight.errors import CheckpointError, ConfigError

pa = pytest.importorskip("pyarrow")
TIME = 315_966_070_522_937_000
EGO = (2000.0, -300.0, 0.7)


def quaternion(yaw):
    return {"qw": [np.cos(yaw / 2)], "qx": [0.0], "qy": [0.0], "qz": [np.sin(yaw / 2)]}


def write(path, columns):
    from pyarrow import feather

    path.parent.mkdir(parents=True, exist_ok=True)
    feather.write_feather(pa.table(columns), path)


def in_city(x, y):
    cos, sin = np.cos(EGO[2]), np.sin(EGO[2])
    return {"x": EGO[0] + cos * x - sin * y, "y": EGO[1] + sin * x + cos * y, "z": 70.0}


@pytest.fixture
def root(tmp_path):
    log = tmp_path / "val" / "02678d04-cc9f-3148-9f95-1ba66347dff9"
    place = {"tx_m": [EGO[0]], "ty_m": [EGO[1]], "tz_m": [69.7]}
    write(log / "city_SE3_egovehicle.feather", {"timestamp_ns": [TIME], **quaternion(EGO[2]), **place})
    camera = {"qw": [0.5], "qx": [-0.5], "qy": [0.5], "qz": [-0.5], "tx_m": [1.6], "ty_m": [0.0], "tz_m": [1.4]}
    write(log / "calibration" / "egovehicle_SE3_sensor.feather", {"sensor_name": ["ring_front_center"], **camera})
    inside = {"fx_px": [1700.0], "fy_px": [1700.0], "cx_px": [775.0], "cy_px": [1024.0]}
    size = {"height_px": [2048], "width_px": [1550]}
    write(log / "calibration" / "intrinsics.feather", {"sensor_name": ["ring_front_center"], **inside, **size})
    boxes = {"timestamp_ns": [TIME, TIME + 1], "category": ["REGULAR_VEHICLE", "BUS"]}
    sizes = {"length_m": [4.5] * 2, "width_m": [2.0] * 2, "height_m": [1.6] * 2}
    turned = {name: values * 2 for name, values in quaternion(0.0).items()}
    placed = {"tx_m": [21.6] * 2, "ty_m": [-3.0] * 2, "tz_m": [0.8] * 2}
    write(log / "annotations.feather", {**boxes, **sizes, **turned, **placed})
    laser = {"x": np.full(4000, 45.0, np.float32), "y": np.linspace(-60, 60, 4000, dtype=np.float32)}
    write(log / "sensors" / "lidar" / f"{TIME}.feather", {**laser, "z": np.zeros(4000, np.float32)})
    pictures = log / "sensors" / "cameras" / "ring_front_center"
    pictures.mkdir(parents=True)
    Image.new("RGB", (1550, 2048)).save(pictures / f"{TIME}.jpg")
    area = [in_city(*point) for point in [(0, -6), (40, -6), (40, 6), (0, 6)]]
    crossing = {"edge1": [in_city(10, -6), in_city(10, 6)], "edge2": [in_city(13, -6), in_city(13, 6)]}
    content = {"drivable_areas": {"1": {"area_boundary": area}}, "pedestrian_crossings": {"2": crossing}}
    (log / "map").mkdir()
    (log / "map" / "log_map_archive_x____PIT_city_1.json").write_text(json.dumps(content))
    return tmp_path


def test_objects_road_and_crossings_come_out_where_they_were_placed(root):
    source, grid = open_source(root), BEVGridConfig(anchor="center")
    assert isinstance(source, Argoverse2) and len(source.frames) == 1
    frame = source.frames[0]
    assert (frame.width, frame.height) == (1550, 2048) and len(source.boxes(frame)) == 1
    masks, _ = source.classes.split_bits(make_labels(source, frame, grid))
    found = {name: np.argwhere(mask) for name, mask in zip(source.classes.names, masks, strict=True)}
    for name, depth, lateral in [("vehicle", 20.0, 3.0), ("ped_crossing", 9.9, 0.0)]:
        row, column = found[name].T
        assert grid.depths()[row].mean() == pytest.approx(depth, abs=0.15), name
        assert grid.laterals()[column].mean() == pytest.approx(lateral, abs=0.15), name
    assert len(found["drivable_area"]) * 0.0625 == pytest.approx((40 - 1.6 - 1) * 12, rel=0.02)
    assert not len(found["bus"]), "its box belongs to another moment"


def test_parts_are_those_of_the_folders(root):
    source = Argoverse2(root)
    assert source.sequences("official", "val") == {source.frames[0].sequence}
    assert not source.sequences("official", "train")


def test_what_is_damaged_is_named(root):
    with pytest.raises(ConfigError, match="ring_side_left"):
        Argoverse2(root, cameras=["ring_side_left"])
    source = Argoverse2(root)
    next(root.glob("val/*/map/*.json")).unlink()
    with pytest.raises(CheckpointError, match="is missing or damaged"):
        source.ground(source.frames[0])
    next(root.glob("val/*/sensors/lidar/*.feather")).write_bytes(b"no feather")
    with pytest.raises(CheckpointError, match="cannot be read"):
        source.lidar_points(source.frames[0])

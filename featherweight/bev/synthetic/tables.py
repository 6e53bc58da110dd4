"""The thirteen tables of nuScenes and its map expansion, as a drawn world grows.

Layout: the schema of nuScenes 1.0 and of its map expansion 1.3.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from featherweight.bev.geometry import quaternion_of_yaw
from featherweight.bev.synthetic.rig import (
    CAMERA_ROTATION,
    LIDAR_ROTATION,
    LIDAR_TRANSLATION,
    WorldConfig,
    camera_pose,
    intrinsics_of,
)
from featherweight.bev.synthetic.streets import Streets
from featherweight.bev.synthetic.traffic import Thing

LOCATIONS = ("singapore-onenorth", "boston-seaport", "singapore-queenstown", "singapore-hollandvillage")
CATEGORIES = (
    "human.pedestrian.adult",
    "human.pedestrian.child",
    "human.pedestrian.wheelchair",
    "human.pedestrian.stroller",
    "human.pedestrian.personal_mobility",
    "human.pedestrian.police_officer",
    "human.pedestrian.construction_worker",
    "animal",
    "vehicle.car",
    "vehicle.motorcycle",
    "vehicle.bicycle",
    "vehicle.bus.bendy",
    "vehicle.bus.rigid",
    "vehicle.truck",
    "vehicle.construction",
    "vehicle.emergency.ambulance",
    "vehicle.emergency.police",
    "vehicle.trailer",
    "movable_object.barrier",
    "movable_object.trafficcone",
    "movable_object.pushable_pullable",
    "movable_object.debris",
    "static_object.bicycle_rack",
)
_VISIBILITY = (("1", "v0-40", 0.4), ("2", "v40-60", 0.6), ("3", "v60-80", 0.8), ("4", "v80-100", 1.1))


class Tables:
    """The thirteen tables as they grow."""

    def __init__(self, config: WorldConfig) -> None:
        self._config = config
        self.records: dict[str, list[dict[str, Any]]] = {
            "attribute": [
                {"token": self._token("attribute", "vehicle.moving"), "name": "vehicle.moving", "description": ""}
            ],
            "visibility": [
                {"token": token, "level": level, "description": f"{level[1:]} % of the object is visible"}
                for token, level, _ in _VISIBILITY
            ],
            "category": [
                {"token": self._token("category", name), "name": name, "description": ""} for name in CATEGORIES
            ],
            "sensor": [
                {"token": self._token("sensor", channel), "channel": channel, "modality": modality}
                for channel, modality in (("CAM_FRONT", "camera"), ("LIDAR_TOP", "lidar"))
            ],
        }
        for name in ("log", "map", "scene", "sample", "sample_data", "ego_pose", "calibrated_sensor", "instance"):
            self.records[name] = []
        self.records["sample_annotation"] = []
        self._last: dict[Any, dict[str, Any]] = {}
        """Last record of each chain, by what it is about."""

    def _token(self, *about: object) -> str:
        text = json.dumps([self._config.seed, *map(str, about)])
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def begin_scene(self, name: str, location: str, frames: int) -> str:
        """Add a drive with its log and calibration, and return its token."""
        token, log = self._token("scene", name), self._token("log", name)
        date = f"2018-07-{1 + len(self.records['log']) % 28:02d}"
        self.records["log"].append(
            {
                "token": log,
                "logfile": f"drawn-{name}",
                "vehicle": "n000",
                "date_captured": date,
                "location": location,
            }
        )
        self.records["scene"].append(
            {
                "token": token,
                "log_token": log,
                "nbr_samples": frames,
                "first_sample_token": self._token("sample", token, 0),
                "last_sample_token": self._token("sample", token, frames - 1),
                "name": name,
                "description": "Drawn world, day, dry",
            }
        )
        camera, config = camera_pose(self._config), self._config
        for channel, translation, rotation, matrix in (
            ("CAM_FRONT", camera[:3, 3].tolist(), list(CAMERA_ROTATION), intrinsics_of(config).tolist()),
            ("LIDAR_TOP", list(LIDAR_TRANSLATION), list(LIDAR_ROTATION), []),
        ):
            self.records["calibrated_sensor"].append(
                {
                    "token": self._token("calibrated_sensor", token, channel),
                    "sensor_token": self._token("sensor", channel),
                    "translation": translation,
                    "rotation": rotation,
                    "camera_intrinsic": matrix,
                }
            )
        return token

    def add_sample(self, scene: str, frame: int, time_us: int) -> str:
        """Add a moment of a drive and return its token."""
        token = self._token("sample", scene, frame)
        self._chain("sample", ("sample", scene), {"token": token, "timestamp": time_us, "scene_token": scene})
        return token

    def add_data(
        self,
        sample: str,
        scene: str,
        channel: str,
        filename: str,
        ego: np.ndarray,
        time_us: int,
        size: tuple[int, int],
    ) -> None:
        """Add a picture or scan with the car's pose at its own moment."""
        token = self._token("sample_data", sample, channel)
        yaw = math.atan2(ego[1, 0], ego[0, 0])
        self.records["ego_pose"].append(
            {
                "token": token,
                "timestamp": time_us,
                "rotation": quaternion_of_yaw(yaw).tolist(),
                "translation": [*ego[:2, 3].tolist(), 0.0],
            }
        )
        record = {
            "token": token,
            "sample_token": sample,
            "ego_pose_token": token,
            "calibrated_sensor_token": self._token("calibrated_sensor", scene, channel),
            "timestamp": time_us,
            "fileformat": "jpg" if channel.startswith("CAM") else "pcd",
            "is_key_frame": True,
            "height": size[1],
            "width": size[0],
            "filename": filename,
        }
        self._chain("sample_data", ("sample_data", scene, channel), record)

    def add_box(
        self, sample: str, scene: str, number: int, thing: Thing, place: np.ndarray, visible: float, laser_points: int
    ) -> None:
        """Add the box of one object at one moment."""
        instance = self._token("instance", scene, number)
        token = self._token("sample_annotation", sample, number)
        chain = ("sample_annotation", instance)
        if chain not in self._last:
            self.records["instance"].append(
                {
                    "token": instance,
                    "category_token": self._token("category", thing.category),
                    "nbr_annotations": 0,
                    "first_annotation_token": token,
                    "last_annotation_token": token,
                }
            )
            self._last["instance", instance] = self.records["instance"][-1]
        about = self._last["instance", instance]
        about["nbr_annotations"] += 1
        about["last_annotation_token"] = token
        record = {
            "token": token,
            "sample_token": sample,
            "instance_token": instance,
            "visibility_token": next(name for name, _, below in _VISIBILITY if visible < below),
            "attribute_tokens": [],
            "translation": [float(place[0]), float(place[1]), thing.size[2] / 2 + thing.bottom],
            "size": list(thing.size),
            "rotation": quaternion_of_yaw(float(place[2])).tolist(),
            "num_lidar_pts": laser_points,
            "num_radar_pts": 0,
        }
        self._chain("sample_annotation", chain, record)

    def end_scene(self, scene: str) -> None:
        """Forget the chains of a drive that is complete."""
        self._last.clear()

    def _chain(self, table: str, chain: Any, record: dict[str, Any]) -> None:
        before = self._last.get(chain)
        record |= {"prev": before["token"] if before else "", "next": ""}
        if before:
            before["next"] = record["token"]
        self._last[chain] = record
        self.records[table].append(record)

    def write(self, folder: Path, version: str) -> None:
        """Write all tables, and the picture of each place's map that the development kit looks for."""
        from PIL import Image

        logs: dict[str, list[str]] = {location: [] for location in LOCATIONS}
        for log in self.records["log"]:
            logs[log["location"]].append(log["token"])
        (folder / "maps").mkdir(exist_ok=True)
        for location, tokens in logs.items():
            filename = f"maps/{self._token('map', location)}.png"
            Image.new("L", (1, 1)).save(folder / filename)
            self.records["map"].append(
                {
                    "token": self._token("map", location),
                    "log_tokens": tokens,
                    "category": "semantic_prior",
                    "filename": filename,
                }
            )
        (folder / version).mkdir()
        for name, records in self.records.items():
            (folder / version / f"{name}.json").write_text(json.dumps(records, indent=0))


def map_expansion(streets: Sequence[Streets], location: str) -> dict[str, Any]:
    """Return the content of a place's map file, with every key that readers of the format ask for."""
    content: dict[str, Any] = {
        "version": "1.3",
        "canvas_edge": [6400.0, 6400.0],
        "node": [],
        "polygon": [],
        **{
            name: []
            for name in (
                "line",
                "road_segment",
                "road_block",
                "lane",
                "stop_line",
                "road_divider",
                "lane_divider",
                "traffic_light",
                "lane_connector",
                "drivable_area",
                "ped_crossing",
                "walkway",
                "carpark_area",
            )
        },
        "arcline_path_3": {},
        "connectivity": {},
    }

    def new_token(table: str) -> str:
        return hashlib.sha256(f"{location} {table} {len(content[table])}".encode()).hexdigest()[:32]

    def add_ring(ring: Any) -> list[str]:
        tokens = []
        for x, y in ring.coords[:-1]:
            tokens.append(new_token("node"))
            content["node"].append({"token": tokens[-1], "x": float(x), "y": float(y)})
        return tokens

    for one in streets:
        for layer, shapes in one.layers.items():
            for shape in shapes:
                polygon = {
                    "token": new_token("polygon"),
                    "exterior_node_tokens": add_ring(shape.exterior),
                    "holes": [{"node_tokens": add_ring(hole)} for hole in shape.interiors],
                }
                content["polygon"].append(polygon)
                named = (
                    {"polygon_tokens": [polygon["token"]]}
                    if layer == "drivable_area"
                    else {"polygon_token": polygon["token"]}
                )
                content[layer].append({"token": new_token(layer), **named})
    return content

"""A whole data set in nuScenes' format, drawn here: tables, pictures, laser scans and maps.

The same seed gives the same bytes.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featherweight.bev.data.splits import sequences_of
from featherweight.bev.geometry import planar_pose, pose, tilt
from featherweight.bev.synthetic.render import Atlas, scan, shoot
from featherweight.bev.synthetic.rig import LIDAR_ROTATION, LIDAR_TRANSLATION, WorldConfig, camera_pose, intrinsics_of
from featherweight.bev.synthetic.streets import MARGIN_M, Streets, lay_streets
from featherweight.bev.synthetic.tables import LOCATIONS, Tables, map_expansion
from featherweight.bev.synthetic.traffic import Thing, populate
from featherweight.config.files import new_folder
from featherweight.errors import ConfigError

KEY_FRAME_S = 0.5
LIDAR_DELAY_S = 0.02
"""The laser's own moment lies behind the camera's: as on a real car, the pose of the one is wrong for the other."""
ANNOTATED_M = 80.0


@dataclass(frozen=True)
class Drive:
    """One drive: the world around it and the car's way through it."""

    name: str
    location: str
    start_us: int
    streets: Streets
    things: list[Thing]
    speed: float

    def ego(self, seconds: float) -> np.ndarray:
        """Return the car's pose, 4 x 4, ego to world."""
        x, y, heading = self.streets.path.place(MARGIN_M + self.speed * seconds, -self.streets.lane)
        return planar_pose(x, y, heading)

    def places(self, seconds: float) -> np.ndarray:
        """Return x, y, heading of everything at a time."""
        return np.array([thing.at(self.streets, seconds) for thing in self.things])


def build_drive(config: WorldConfig, number: int) -> Drive:
    """Return drive `number` of a world: a function of the seed and the number alone."""
    random = np.random.default_rng([config.seed, number])
    speed = float(random.uniform(3, 12))
    driven = speed * KEY_FRAME_S * (config.frames - 1)
    # Drives of one place lie far apart on its map.
    origin = (400.0 + 700.0 * (number // 4 % 8), 400.0 + 700.0 * (number // 32))
    streets = lay_streets(random, origin, driven)
    things = populate(random, streets, speed, driven)
    start = 1_533_000_000_000_000 + number * 3_600_000_000
    return Drive(_names(config.scenes)[number], LOCATIONS[number % 4], start, streets, things, speed)


def write_world(
    folder: str | Path, config: WorldConfig | None = None, *, progress: Callable[[int, int], None] | None = None
) -> Path:
    """Draw a world and write it as a nuScenes folder.

    Args:
        folder: made anew; it appears when it is whole.
        config: options.
        progress: called with frames done and frames in all.
    Returns:
        The folder.
    Raises:
        ConfigError: if the folder is not empty.
    """
    config, target = config or WorldConfig(), Path(folder)
    if target.exists() and any(target.iterdir()):
        raise ConfigError(
            f"write_world: folder='{target}' is not empty; expected a new or empty one. Choose another folder, or "
            "remove what is there."
        )
    with new_folder(target, replace=True) as place:
        tables = Tables(config)
        done = 0
        maps: dict[str, list[Streets]] = {}
        for number in range(config.scenes):
            drive = build_drive(config, number)
            maps.setdefault(drive.location, []).append(drive.streets)
            for _ in _write_drive(place, drive, tables, config, number):
                done += 1
                if progress:
                    progress(done, config.scenes * config.frames)
        tables.write(place, version_of(config.scenes))
        for location in LOCATIONS:
            path = place / "maps" / "expansion" / f"{location}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(map_expansion(maps.get(location, []), location)))
    return target


def version_of(scenes: int) -> str:
    """Return the name of the folder of tables: that of the small download if ten drives or fewer are in it."""
    return "v1.0-mini" if scenes <= 10 else "v1.0-trainval"


def _names(scenes: int) -> list[str]:
    """Return names of drives: nuScenes' ten small ones, then training drives with every fifth from those that judge."""
    mini = sequences_of("official", "train", mini=True) | sequences_of("official", "val", mini=True)
    train = sorted(sequences_of("pon", "train") - mini)
    judged = sorted(sequences_of("pon", "val") - mini)
    more = [judged[number // 5] if number % 5 == 4 else train[number] for number in range(max(0, scenes - 10))]
    return [*sorted(mini), *more][:scenes]


def _write_drive(folder: Path, drive: Drive, tables: Tables, config: WorldConfig, number: int) -> Iterator[None]:
    from PIL import Image

    random = np.random.default_rng([config.seed, number, 1])
    atlas = Atlas(drive.streets)
    size = (config.image_width, config.image_height)
    intrinsics = intrinsics_of(config)
    camera_to_ego, lidar_to_ego = camera_pose(config), pose(LIDAR_ROTATION, LIDAR_TRANSLATION)
    scene = tables.begin_scene(drive.name, drive.location, config.frames)
    for frame in range(config.frames):
        seconds = frame * KEY_FRAME_S
        time_us = drive.start_us + round(seconds * 1e6)
        pitch, roll = np.deg2rad(config.pitch_jitter_deg) * random.standard_normal(2) * (1.0, 0.5)
        true_camera = camera_to_ego.copy()
        true_camera[:3, :3] = camera_to_ego[:3, :3] @ tilt(pitch, roll).T
        places = drive.places(seconds)
        shot = shoot(atlas, drive.things, places, drive.ego(seconds) @ true_camera, intrinsics, size)
        later = seconds + LIDAR_DELAY_S
        points, struck = scan(drive.things, drive.places(later), drive.ego(later) @ lidar_to_ego)
        stem = f"{drive.name}__{{}}__{time_us}"
        image = Path("samples", "CAM_FRONT", stem.format("CAM_FRONT") + ".jpg")
        laser = Path("samples", "LIDAR_TOP", stem.format("LIDAR_TOP") + ".pcd.bin")
        for path in (image, laser):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(shot.image).save(folder / image, quality=92)
        points.tofile(folder / laser)
        sample = tables.add_sample(scene, frame, time_us)
        tables.add_data(sample, scene, "CAM_FRONT", image.as_posix(), drive.ego(seconds), time_us, size)
        lidar_us = time_us + round(LIDAR_DELAY_S * 1e6)
        tables.add_data(sample, scene, "LIDAR_TOP", laser.as_posix(), drive.ego(later), lidar_us, (0, 0))
        counts = np.bincount(struck[struck >= 0], minlength=len(drive.things))
        ego = drive.ego(seconds)[:2, 3]
        for which, (thing, where) in enumerate(zip(drive.things, places, strict=True)):
            if thing.is_annotated and np.hypot(*(where[:2] - ego)) < ANNOTATED_M:
                tables.add_box(sample, scene, which, thing, where, float(shot.visible[which]), int(counts[which]))
        yield
    tables.end_scene(scene)

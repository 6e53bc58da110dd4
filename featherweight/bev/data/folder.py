"""Own frames: `frames/*.jpg`, `calibration.json`, and where known `poses.jsonl` and `labels/*.png`.

calibration.json: {"K": 3 x 3, "camera_to_ego": 4 x 4, "classes": "pon14"}; poses.jsonl: one line a frame, {"t": s,
"x": m, "y": m, "yaw": rad} or {"t": s, "pose": 4 x 4}; labels: 16-bit pictures of the name of their frame, whose
pixels are sums of 2^k, row 0 nearest.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from featherweight.bev.data.classes import find_classes
from featherweight.bev.data.frames import Frame, Source
from featherweight.bev.geometry import check_camera, planar_pose
from featherweight.bev.grid import BEVGridConfig
from featherweight.errors import ConfigError

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
JUDGED_SHARE = 0.2
"""Of the frames, the last in time: neighbours look alike, so that they are not mixed."""


class FolderSource(Source):
    """Frames of one camera in a folder, in the order of their names.

    Args:
        root: the folder.
    Raises:
        ConfigError: if something is missing or does not fit.
    """

    splits = ("time",)

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        intrinsics, camera, classes = self._calibration()
        self.classes = find_classes(classes)
        files = pictures_of(self.root / "frames", where="bev")
        poses = read_poses(self.root / "poses.jsonl", len(files)) if (self.root / "poses.jsonl").exists() else None
        cut = len(files) - max(1, round(JUDGED_SHARE * len(files)))
        self.frames: Sequence[Frame] = [
            self._frame(number, path, "earlier" if number < cut else "later", intrinsics, camera, poses)
            for number, path in enumerate(files)
        ]

    def _frame(
        self,
        number: int,
        path: Path,
        sequence: str,
        intrinsics: np.ndarray,
        camera: np.ndarray,
        poses: list[tuple[float, np.ndarray]] | None,
    ) -> Frame:
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(path) as image:  # reads the head alone
                width, height = image.size
        except (OSError, UnidentifiedImageError) as error:
            raise ConfigError(
                f"bev: frame '{path}' cannot be read as a picture ({error}); expected JPEG or PNG. Remove it."
            ) from error
        # Without poses each frame stands alone: times too far apart for a memory.
        time, ego = poses[number] if poses else (1000.0 * number, np.eye(4))
        return Frame(number, path.stem, sequence, "camera", path, width, height, time, intrinsics, camera, ego)

    def sequences(self, split: str, part: str) -> tuple[str, ...]:
        """Return "earlier" to train with and "later", the last fifth of the frames, to judge with."""
        return ("earlier",) if part == "train" else ("later",)

    def stored_labels(self, frame: Frame, grid: BEVGridConfig) -> np.ndarray:
        """Return the labels of a frame.

        Raises:
            ConfigError: if they are missing or have other cells.
        """
        from PIL import Image

        path = self.root / "labels" / f"{frame.token}.png"
        if not path.exists():
            raise ConfigError(
                f"bev: frame '{frame.image.name}' has no labels ('{path}'); expected a 16-bit picture of "
                f"{grid.columns} x {grid.rows} cells. Add it, or use the folder for prediction alone."
            )
        with Image.open(path) as image:
            bits = np.array(image)
        if bits.shape != grid.shape or bits.dtype.kind not in "iu":
            raise ConfigError(
                f"bev: labels '{path}' have {bits.shape[1]} x {bits.shape[0]} cells of {bits.dtype}; expected "
                f"{grid.columns} x {grid.rows} whole numbers. Make them for this grid, or change `task.model.grid`."
            )
        return bits.astype(np.uint16)

    def _calibration(self) -> tuple[np.ndarray, np.ndarray, str]:
        path = self.root / "calibration.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            intrinsics = np.array(content["K"], dtype=np.float64).reshape(3, 3)
            camera = np.array(content["camera_to_ego"], dtype=np.float64).reshape(4, 4)
            classes = str(content.get("classes", "pon14"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"bev: '{path}' cannot be read as a calibration ({type(error).__name__}: {error}); expected "
                '{"K": 3 x 3, "camera_to_ego": 4 x 4}. Correct it.'
            ) from error
        return intrinsics, check_camera(camera, where=f"bev: '{path}'"), classes


def pictures_of(folder: Path, *, where: str) -> list[Path]:
    """Return the pictures of a folder by name.

    Raises:
        ConfigError: if there are none.
    """
    files = sorted(path for path in folder.glob("*") if path.suffix.lower() in PICTURES)
    if not files:
        raise ConfigError(
            f"{where}: frames='{folder}' holds no picture ({', '.join(PICTURES)}); expected at least one. Check the "
            "folder."
        )
    return files


def read_poses(path: Path, count: int) -> list[tuple[float, np.ndarray]]:
    """Return the time in s and the pose (4 x 4, ego to world) of each frame.

    Raises:
        ConfigError: if a line cannot be read, or there are more or fewer than frames.
    """
    found: list[tuple[float, np.ndarray]] = []
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.strip():
                record = json.loads(line)
                if "pose" in record:
                    pose = np.array(record["pose"], dtype=np.float64).reshape(4, 4)
                else:
                    pose = planar_pose(float(record["x"]), float(record["y"]), float(record["yaw"]))
                found.append((float(record["t"]), pose))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"bev: poses='{path}', line {len(found) + 1} cannot be read ({type(error).__name__}: {error}); expected "
            "JSON "
            'such as {"t": 0.5, "x": 3.0, "y": 0.1, "yaw": 0.02}. Correct it.'
        ) from error
    if len(found) != count:
        raise ConfigError(
            f"bev: poses='{path}' has {len(found)} lines for {count} pictures; expected one a picture. Complete it."
        )
    return found

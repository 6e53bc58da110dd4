"""The map of a drive: what single frames say about each place of the world, summed as log-odds."""

from pathlib import Path

import numpy as np

from featherweight.bev.geometry import ground_matrix
from featherweight.bev.grid import BEVGridConfig
from featherweight.config.files import new_file

_LARGEST = 6.0
"""Beyond it, further frames say nothing new: one wrong frame can still be outvoted."""
_AROUND_M = 60.0


class MapAccumulator:
    """Log-odds of each class for each place that was in view.

    Args:
        classes: K.
        grid: of the frames' maps; the world's cells have its resolution.
    """

    def __init__(self, classes: int, grid: BEVGridConfig) -> None:
        self.grid = grid
        self._cells: dict[tuple[int, int], np.ndarray] = {}
        self._classes = classes

    def __len__(self) -> int:
        """Cells of the world that were in view."""
        return len(self._cells)

    def add(self, probabilities: np.ndarray, in_view: np.ndarray, camera_to_world: np.ndarray) -> None:
        """Add the map of one frame.

        Args:
            probabilities: (K, rows, columns).
            in_view: (rows, columns) bool.
            camera_to_world: 4 x 4.
        """
        world = self.grid.points()[in_view] @ ground_matrix(camera_to_world, self.grid.plane).T
        cells = np.floor(world[:, :2] / self.grid.resolution).astype(np.int64)
        clipped = np.clip(probabilities[:, in_view], 1e-3, 1 - 1e-3).T
        odds = np.log(clipped / (1 - clipped))
        for cell, value in zip(map(tuple, cells.tolist()), odds, strict=True):
            before = self._cells.get(cell, 0.0)
            self._cells[cell] = np.clip(before + value, -_LARGEST, _LARGEST)

    def picture_around(self, camera_to_world: np.ndarray) -> tuple[np.ndarray, np.ndarray, BEVGridConfig]:
        """Return the world 60 m around a camera, north (y of the world) up.

        Returns:
            Masks (K, rows, columns), the cells (rows, columns) that were ever in view, and the grid; the camera stands
            in its middle.
        """
        count = round(2 * _AROUND_M / self.grid.resolution)
        x, y = camera_to_world[:2, 3] / self.grid.resolution
        first = int(x) - count // 2, int(y) - count // 2
        masks, known = np.zeros((self._classes, count, count), bool), np.zeros((count, count), bool)
        for (column, row), odds in self._cells.items():
            at = row - first[1], column - first[0]
            if 0 <= at[0] < count and 0 <= at[1] < count:
                masks[:, at[0], at[1]] = odds > 0
                known[at] = True
        half = count // 2 * self.grid.resolution
        grid = BEVGridConfig(
            x_min=-half, x_max=half, z_min=1, z_max=1 + 2 * half, resolution=self.grid.resolution, anchor="center"
        )
        return masks, known, grid

    def save(self, path: str | Path) -> Path:
        """Write cells (n, 2), their log-odds (n, K) and the resolution as .npz, and return the path."""
        cells = np.array(list(self._cells), dtype=np.int64).reshape(-1, 2)
        odds = np.array(list(self._cells.values()), dtype=np.float32).reshape(-1, self._classes)
        with new_file(path) as place, place.open("wb") as stream:
            np.savez_compressed(stream, cells=cells, log_odds=odds, resolution=self.grid.resolution)
        return Path(path)

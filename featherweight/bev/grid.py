"""The bird's-eye-view grid: which place on the ground a cell of a label or of a prediction stands for.

Rows are depth (row 0 is nearest), columns are lateral (column 0 is left). Distances in metres, relative to the camera.
"""

from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from featherweight.config import Config

Anchor = Literal["corner", "center"]
Plane = Literal["camera", "gravity"]


class BEVGridConfig(Config):
    """Extent, resolution and conventions of a grid.

    Example:
        >>> grid = BEVGridConfig()
        >>> grid.shape, float(grid.depths()[0]), float(grid.laterals()[0])
        ((196, 200), 1.0, -25.0)
    """

    x_min: float = -25.0
    """Left end in m; x points to the right."""
    x_max: float = 25.0
    """Right end in m, excluded."""
    z_min: float = Field(default=1.0, gt=0)
    """Near end in m; z points forward."""
    z_max: float = 50.0
    """Far end in m, excluded."""
    resolution: float = Field(default=0.25, gt=0)
    """Side of a cell in m."""
    anchor: Anchor = "corner"
    """Index i stands for min + i * resolution ("corner", as in published labels) or for the middle of the cell."""
    plane: Plane = "camera"
    """The ground's axes: those of the camera without heights, small shears kept ("camera", as in published labels), or
    those of its heading alone ("gravity", a rigid frame for robots)."""

    @model_validator(mode="after")
    def _check_extent(self) -> "BEVGridConfig":
        for low, high, axis in ((self.x_min, self.x_max, "x"), (self.z_min, self.z_max, "z")):
            cells = (high - low) / self.resolution
            if cells < 1 or abs(cells - round(cells)) > 1e-6:
                raise ValueError(
                    f"{axis}_min={low}, {axis}_max={high} make {cells:g} cells of resolution={self.resolution}; "
                    "expected a whole number of at least 1. Choose ends that lie a multiple of the resolution apart."
                )
        return self

    @property
    def rows(self) -> int:
        """Cells in depth."""
        return round((self.z_max - self.z_min) / self.resolution)

    @property
    def columns(self) -> int:
        """Cells from left to right."""
        return round((self.x_max - self.x_min) / self.resolution)

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.rows, self.columns

    @property
    def offset(self) -> float:
        """Place of a cell's anchor inside of the cell, in cells: 0 for "corner", 1/2 for "center"."""
        return 0.5 if self.anchor == "center" else 0.0

    def depths(self) -> np.ndarray:
        """Return the depth z in m of each row, float64."""
        return self.z_min + (np.arange(self.rows) + self.offset) * self.resolution

    def laterals(self) -> np.ndarray:
        """Return the lateral place x in m of each column, float64."""
        return self.x_min + (np.arange(self.columns) + self.offset) * self.resolution

    def points(self) -> np.ndarray:
        """Return the homogeneous ground points (x, z, 1) of all cells: (rows, columns, 3), float64."""
        x_HW, z_HW = np.meshgrid(self.laterals(), self.depths())
        return np.stack([x_HW, z_HW, np.ones_like(x_HW)], axis=-1)

    def index(self, points: np.ndarray) -> np.ndarray:
        """Return where (..., 2) ground points (x, z) lie in cells (column, row); a whole number is an anchor."""
        return (points - np.array([self.x_min, self.z_min])) / self.resolution - self.offset

    def coarser(self, resolution: float) -> "BEVGridConfig":
        """Return the same ground in cells of another size."""
        return self.model_copy(update={"resolution": resolution})

"""The classes of each data set in their published order, which categories draw into them, and how frequent they are."""

from dataclasses import dataclass, field

import numpy as np

from featherweight.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class ClassList:
    """Classes of a data set. Labels are sums of 2^k over the classes k of a cell; bit `len(names)` says "not seen"."""

    name: str
    """Short name, part of the protocol of every score."""
    names: tuple[str, ...]
    """In the order of the bits."""
    layers: tuple[str, ...]
    """Those that come from the map; the others are objects."""
    categories: dict[str, str] = field(repr=False)
    """Category of an annotated box -> class; every other category hides its cells."""
    priors: tuple[float, ...]
    """Share of seen cells in the training set; where biases and weights of a new network begin."""

    @property
    def ignore_bit(self) -> int:
        """Bit of cells that nobody could see."""
        return len(self.names)

    @property
    def objects(self) -> tuple[int, ...]:
        """Numbers of the classes that do not come from the map."""
        return tuple(number for number, name in enumerate(self.names) if name not in self.layers)

    def class_of(self, category: str) -> int:
        """Return the class number of a category, or `ignore_bit` if the category has no class."""
        name = self.categories.get(category)
        return self.ignore_bit if name is None else self.names.index(name)

    def split_bits(self, bits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (K, rows, columns) bool class masks and the (rows, columns) bool mask of seen cells."""
        masks = (bits[None] >> np.arange(len(self.names))[:, None, None]) & 1
        return masks.astype(bool), (bits >> self.ignore_bit) & 1 == 0


def _same(prefix: str, names: dict[str, str]) -> dict[str, str]:
    return {f"{prefix}.{category}": name for category, name in names.items()}


NUSCENES = ClassList(
    name="pon14",
    names=(
        "drivable_area",
        "ped_crossing",
        "walkway",
        "carpark",
        "car",
        "truck",
        "bus",
        "trailer",
        "construction_vehicle",
        "pedestrian",
        "motorcycle",
        "bicycle",
        "traffic_cone",
        "barrier",
    ),
    layers=("drivable_area", "ped_crossing", "walkway", "carpark"),
    categories={
        **_same(
            "vehicle",
            {
                "car": "car",
                "truck": "truck",
                "bus.bendy": "bus",
                "bus.rigid": "bus",
                "trailer": "trailer",
                "construction": "construction_vehicle",
                "motorcycle": "motorcycle",
                "bicycle": "bicycle",
            },
        ),
        **_same(
            "human.pedestrian",
            dict.fromkeys(("adult", "child", "construction_worker", "police_officer"), "pedestrian"),
        ),
        **_same("movable_object", {"trafficcone": "traffic_cone", "barrier": "barrier"}),
    },
    priors=(
        0.44679,
        0.02407,
        0.14491,
        0.02994,
        0.02086,
        0.00477,
        0.00156,
        0.00189,
        0.00084,
        0.00119,
        0.00019,
        0.00012,
        0.00031,
        0.00176,
    ),
)

ARGOVERSE1 = ClassList(
    name="argo8",
    names=("drivable_area", "vehicle", "pedestrian", "large_vehicle", "bicycle", "bus", "trailer", "motorcycle"),
    layers=("drivable_area",),
    categories={
        "VEHICLE": "vehicle",
        "EMERGENCY_VEHICLE": "vehicle",
        "PEDESTRIAN": "pedestrian",
        "LARGE_VEHICLE": "large_vehicle",
        "BICYCLE": "bicycle",
        "BICYCLIST": "bicycle",
        "BUS": "bus",
        "TRAILER": "trailer",
        "MOTORCYCLE": "motorcycle",
        "MOTORCYCLIST": "motorcycle",
        "MOPED": "motorcycle",
    },
    priors=(0.5, 0.03, 0.002, 0.005, 0.0005, 0.003, 0.001, 0.0003),
)

ARGOVERSE2 = ClassList(
    name="av2-10",
    names=(
        "drivable_area",
        "ped_crossing",
        "vehicle",
        "large_vehicle",
        "bus",
        "trailer",
        "bicycle",
        "motorcycle",
        "pedestrian",
        "construction",
    ),
    layers=("drivable_area", "ped_crossing"),
    categories={
        "REGULAR_VEHICLE": "vehicle",
        **dict.fromkeys(("LARGE_VEHICLE", "BOX_TRUCK", "TRUCK", "TRUCK_CAB"), "large_vehicle"),
        **dict.fromkeys(("BUS", "SCHOOL_BUS", "ARTICULATED_BUS"), "bus"),
        "VEHICULAR_TRAILER": "trailer",
        **dict.fromkeys(("BICYCLE", "BICYCLIST"), "bicycle"),
        **dict.fromkeys(("MOTORCYCLE", "MOTORCYCLIST"), "motorcycle"),
        "PEDESTRIAN": "pedestrian",
        **dict.fromkeys(("CONSTRUCTION_CONE", "CONSTRUCTION_BARREL", "BOLLARD"), "construction"),
    },
    priors=(0.5, 0.02, 0.03, 0.003, 0.002, 0.001, 0.0005, 0.0003, 0.002, 0.0005),
)
# The priors of Argoverse are guesses of a size, not counts: they decide where biases and weights begin, no score.

CLASS_LISTS = {one.name: one for one in (NUSCENES, ARGOVERSE1, ARGOVERSE2)}


def find_classes(name: str) -> ClassList:
    """Return a list of classes by its short name.

    Raises:
        ConfigError: if there is none.
    """
    if name not in CLASS_LISTS:
        raise ConfigError(
            f"find_classes: name='{name}' is no list of classes; expected one of {', '.join(CLASS_LISTS)}. "
            f"{did_you_mean(name, CLASS_LISTS)}"
        )
    return CLASS_LISTS[name]

"""The map expansion of nuScenes: polygons of road, crossings, walkways and parking in world coordinates."""

import json
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from featherweight.bev.data.layers import GroundMap, Polygons
from featherweight.errors import CheckpointError

LAYERS = {
    "drivable_area": "drivable_area",
    "ped_crossing": "ped_crossing",
    "walkway": "walkway",
    "carpark_area": "carpark",
}
"""Layer of the file -> class that it draws into."""


def read_map(path: Path) -> GroundMap:
    """Return the polygons of a place. Records without a polygon are left out and counted: published files have some.

    Raises:
        CheckpointError: if the file is missing, damaged or refers to a node that is not there.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        nodes = {node["token"]: (node["x"], node["y"]) for node in content["node"]}
        if str(content.get("version", "1.3")) < "1.3":
            raise ValueError(f"version {content['version']}")
        polygons = {
            polygon["token"]: [
                np.array([nodes[token] for token in tokens], np.float64)
                for tokens in (polygon["exterior_node_tokens"], *(hole["node_tokens"] for hole in polygon["holes"]))
                if len(tokens) >= 3
            ]
            for polygon in content["polygon"]
        }
        wanted = {name: [token for one in content[layer] for token in _tokens(one)] for layer, name in LAYERS.items()}
        without = sum(not any(True for _ in _tokens(one)) for layer in LAYERS for one in content[layer])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"read_map: path='{path}' cannot be read as a map ({type(error).__name__}: {error}); expected the map "
            "expansion 1.3 of nuScenes. Unpack it into maps/expansion of the data set."
        ) from error
    without += sum(not polygons.get(token) for tokens in wanted.values() for token in tokens)
    if without:
        warnings.warn(
            f"read_map: path='{path}': {without} of {sum(map(len, wanted.values()))} polygons are missing or have "
            "fewer than three corners, and are left out. A few are usual; many mean a damaged file: unpack it again.",
            stacklevel=2,
        )
    return {
        name: Polygons([polygons[token] for token in tokens if polygons.get(token)]) for name, tokens in wanted.items()
    }


def _tokens(record: dict[str, Any]) -> Iterable[str]:
    if "polygon_tokens" in record:
        return [token for token in record["polygon_tokens"] or () if token]
    return [record["polygon_token"]] if record.get("polygon_token") else []

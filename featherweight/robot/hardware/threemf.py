"""Triangles from a 3MF file, read piece by piece: what a small file inflates to takes neither memory nor time.

A 3MF is a zip archive with XML models in it. Python's own readers are enough; a document type is refused, since
entities in it may refer to other files or multiply.
Source: 3MF Core Specification 1.3, with the paths of its Production Extension.
"""

import re
import zipfile
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.parsers import expat

import numpy as np

from featherweight.errors import ConfigError
from featherweight.robot.kinematics.dh import Array

MOST_BYTES = 256 << 20
"""Of all models of a file, inflated; a million triangles take about 70 MB."""
PIECE_BYTES = 1 << 16
DEEPEST, MOST_PARTS = 16, 10_000
"""Objects inside of objects, and how many of them are built in all: a few lines can name one another 10^16 times."""
UNITS_MM = {"micron": 1e-3, "millimeter": 1.0, "centimeter": 10.0, "inch": 25.4, "foot": 304.8, "meter": 1000.0}
MODEL = "3D/3dmodel.model"


@dataclass
class _Object:
    points: "array[float]" = field(default_factory=lambda: array("d"))
    corners: "array[int]" = field(default_factory=lambda: array("q"))
    parts: list[tuple[str, str, Array]] = field(default_factory=list)
    """Model, object and place of each component."""


@dataclass
class _Model:
    unit_mm: float = 1.0
    objects: dict[str, _Object] = field(default_factory=dict)
    items: list[tuple[str, str, Array]] = field(default_factory=list)


def read_threemf(path: Path, most_triangles: int | None = None) -> tuple[Array, Any]:
    """Return (V, 3) corners in mm and (F, 3) indices of what a 3MF file builds.

    Args:
        path: of the file.
        most_triangles: more are refused, without reading them; None for no limit but that of the inflated size.
    Raises:
        ConfigError: if the file is damaged, has too many triangles, or inflates to more than 256 MB.
    Cost: about 2 s for a million triangles of XML.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            reader = _Reader(archive, path, most_triangles)
            root = reader.model(_root_of(archive))
            corners: list[Array] = []
            faces: list[Any] = []
            for item in root.items:
                reader.collect(*item, corners, faces, 0)
    except (OSError, zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, RuntimeError) as error:
        raise _damaged(path, str(error)) from error
    except (expat.ExpatError, ValueError, KeyError, EOFError) as error:
        if isinstance(error, ConfigError):
            raise
        raise _damaged(path, f"{type(error).__name__}: {error}") from error
    except Exception as error:  # zlib raises kinds of its own
        if isinstance(error, ConfigError):
            raise
        raise _damaged(path, str(error)) from error
    if not faces:
        raise _damaged(path, "nothing is built")
    return root.unit_mm * np.concatenate(corners), np.concatenate(faces)


def _damaged(path: Path, reason: str) -> ConfigError:
    return ConfigError(
        f"robot: part={path} is no 3MF ({' '.join(reason.split())[:160]}); expected a solid. Export it again."
    )


def _root_of(archive: zipfile.ZipFile) -> str:
    """Return the name of the model that the archive is about."""
    try:
        with archive.open("_rels/.rels") as file:
            found = re.search(rb'Target="/?([^"]+\.model)"', file.read(PIECE_BYTES))
    except KeyError:
        found = None
    return found[1].decode() if found else MODEL


class _Reader:
    """Reads the models of an archive, each once."""

    def __init__(self, archive: zipfile.ZipFile, path: Path, most_triangles: int | None) -> None:
        self._archive, self._path, self._most = archive, path, most_triangles
        self._models: dict[str, _Model] = {}
        self._bytes = self._triangles = self._parts = 0

    def model(self, name: str) -> _Model:
        """Return a model of the archive."""
        name = name.lstrip("/")
        if name not in self._models:
            self._models[name] = self._parse(name)
        return self._models[name]

    def collect(
        self, name: str, object_id: str, place: Array, corners: list[Array], faces: list[Any], depth: int
    ) -> None:
        """Add the triangles of an object and of its components, at their places."""
        one = self.model(name).objects.get(object_id)
        self._parts += 1
        if one is None or depth > DEEPEST or self._parts > MOST_PARTS:
            raise ValueError(f"object {object_id} is {'built too often' if one else 'not there'}")
        points = np.frombuffer(one.points).reshape(-1, 3)
        if len(one.corners):
            found = np.frombuffer(one.corners, np.int64).reshape(-1, 3)
            if not len(points) or found.min() < 0 or found.max() >= len(points):
                raise ValueError(f"object {object_id} has triangles without corners")
            self._count(len(found), counted=True)
            faces.append(found + sum(map(len, corners)))
            corners.append(points @ place[:3] + place[3])
        for part_name, part_id, part_place in one.parts:
            inner = np.vstack([part_place[:3] @ place[:3], part_place[3] @ place[:3] + place[3]])
            self.collect(part_name or name, part_id, inner, corners, faces, depth + 1)

    def _count(self, triangles: int, counted: bool = False) -> None:
        """Refuse what is too much: triangles in the file, or those that are built from them again and again."""
        most = self._most if self._most is not None else MOST_BYTES // 50
        if counted:
            self._triangles += triangles
            triangles = self._triangles
        if triangles > most:
            raise ConfigError(
                f"robot: part={self._path} has more than {most} triangles; expected at most that. Export it coarser."
            )

    def _parse(self, name: str) -> _Model:
        model, parser = _Model(), expat.ParserCreate(namespace_separator=" ")
        now: list[_Object] = []

        def start(tag: str, values: dict[str, str]) -> None:
            tag = tag.rpartition(" ")[2]
            if tag == "vertex":
                now[-1].points.extend((float(values["x"]), float(values["y"]), float(values["z"])))
                self._count(len(now[-1].points) // 9)  # a triangle needs three corners at most
            elif tag == "triangle":
                now[-1].corners.extend((int(values["v1"]), int(values["v2"]), int(values["v3"])))
                self._count(len(now[-1].corners) // 3)
            elif tag == "object":
                now.append(model.objects.setdefault(values["id"], _Object()))
            elif tag in ("component", "item"):
                where = next((value for key, value in values.items() if key.endswith(" path")), name)
                of = now[-1].parts if tag == "component" else model.items
                of.append((where, values["objectid"], _place(values.get("transform", ""))))
            elif tag == "model":
                model.unit_mm = UNITS_MM[values.get("unit", "millimeter")]

        def refuse(*_: Any) -> None:
            raise ValueError("a document type is no part of a 3MF")

        parser.StartElementHandler, parser.StartDoctypeDeclHandler = start, refuse
        with self._archive.open(name) as file:
            while piece := file.read(PIECE_BYTES):
                self._bytes += len(piece)
                if self._bytes > MOST_BYTES:
                    raise ConfigError(
                        f"robot: part={self._path} inflates to more than {MOST_BYTES >> 20} MB; expected less. Export "
                        "it coarser."
                    )
                parser.Parse(piece)
        parser.Parse(b"", True)
        return model


def _place(transform: str) -> Array:
    """Return the (4, 3) rows of a transform, which multiply a row of coordinates from the right."""
    if not transform.strip():
        return np.vstack([np.eye(3), np.zeros(3)])
    numbers = np.array(transform.split(), dtype=np.float64)
    if numbers.shape != (12,) or not np.isfinite(numbers).all():
        raise ValueError(f"transform={transform[:60]} holds no twelve numbers")
    return numbers.reshape(4, 3)

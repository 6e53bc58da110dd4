"""Is a mesh a part that one can print? Closed, turned outwards, thick enough, in one piece, inside the printer.

Triangles as (V, 3) corners in mm and (F, 3) indices, from a solid or from a file.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from featherweight.robot.hardware.solids import import_manifold
from featherweight.robot.kinematics.dh import Array

OVERHANG_DEG = 50.0
"""Faces that hang over more than this from the vertical need support."""
OPPOSITE = -0.7
"""Cosine between two faces that bound a wall; at sharper corners there is no thickness to speak of."""


@dataclass(frozen=True)
class Fault:
    """What is wrong with a part.

    Attributes:
        name: short, for tables and tests.
        text: one sentence with numbers, and what to do.
        places: (K, 3) points in mm where it is, maybe none.
    """

    name: str
    text: str
    places: Array


NOWHERE: Array = np.zeros((0, 3))


def weld(vertices: Array, faces: Any) -> tuple[Array, Any]:
    """Join corners at the same place (to a micrometre), as STL files need it, and drop triangles without area."""
    _, first, index = np.unique(np.round(vertices, 3), axis=0, return_index=True, return_inverse=True)
    joined = index.reshape(-1)[faces]
    whole = (joined[:, 0] != joined[:, 1]) & (joined[:, 1] != joined[:, 2]) & (joined[:, 2] != joined[:, 0])
    return vertices[first], joined[whole]


def edge_faults(vertices: Array, faces: Any) -> list[Fault]:
    """Return open and contradicting edges: of a closed surface each edge runs once in either direction."""
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    key = edges[:, 0].astype(np.int64) * len(vertices) + edges[:, 1]
    back = edges[:, 1].astype(np.int64) * len(vertices) + edges[:, 0]
    faults = []
    once = ~np.isin(key, back)
    doubled, count = np.unique(key, return_counts=True)
    if once.any() and not (count > 1).any():
        places = vertices[edges[once]].mean(1)
        faults.append(
            Fault("open", f"the surface has holes: {once.sum()} edges belong to one triangle. Close it.", places)
        )
    elif (count > 1).any():
        where = np.isin(key, doubled[count > 1])
        places = vertices[edges[where]].mean(1)
        faults.append(
            Fault("tangled", f"{where.sum()} edges are used twice in one direction. Turn or remove triangles.", places)
        )
    return faults


def signed_volume(vertices: Array, faces: Any) -> float:
    """Return the volume inside triangles that are turned outwards, in mm3; negative if they are turned inwards."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    return float(np.einsum("fi,fi->", a, np.cross(b, c)) / 6)


def shells(faces: Any, count: int) -> Any:
    """Return (F,) the number of the connected piece that each triangle belongs to."""
    label = np.arange(count)
    while True:
        smallest = label[faces].min(1)
        new = label.copy()
        for i in range(3):
            np.minimum.at(new, faces[:, i], smallest)
        new = new[new]
        if (new == label).all():
            return np.unique(label[faces[:, 0]], return_inverse=True)[1]
        label = new


def thin_places(
    vertices: Array, faces: Any, least_mm: float, samples: int = 1500, seed: int = 0
) -> tuple[Array, float]:
    """Return (K, 3) points where the wall is thinner than `least_mm`, and the thinnest wall found.

    From points spread over the surface a ray goes inwards; the wall ends at the first face that looks the other way.
    Cost: a fifth of a second.
    """
    manifold = import_manifold()
    solid = manifold.Manifold(manifold.Mesh64(np.ascontiguousarray(vertices), np.ascontiguousarray(faces, np.uint64)))
    if solid.is_empty():
        return NOWHERE, float("inf")
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    normals = np.cross(b - a, c - a)
    areas = np.linalg.norm(normals, axis=1)
    generator = np.random.default_rng(seed)
    chosen = np.concatenate(
        [np.flatnonzero(areas > 0.05), generator.choice(len(faces), samples, p=areas / areas.sum())]
    )
    u, v = generator.uniform(size=(2, len(chosen)))
    u, v = np.where(u + v > 1, 1 - u, u), np.where(u + v > 1, 1 - v, v)
    points = a[chosen] + u[:, None] * (b - a)[chosen] + v[:, None] * (c - a)[chosen]
    inward = -normals[chosen] / areas[chosen][:, None]
    found, thinnest = [], float("inf")
    reach = 4 * least_mm
    for point, direction in zip(points, inward, strict=True):
        start = point + 1e-4 * direction
        hits = solid.ray_cast(start.tolist(), (point + reach * direction).tolist())
        if not hits or float(np.dot(np.asarray(hits[0].normal), -direction)) > OPPOSITE:
            continue
        thickness = float(np.linalg.norm(np.asarray(hits[0].position) - point))
        thinnest = min(thinnest, thickness)
        if thickness < least_mm - 1e-3:
            found.append(point)
    return np.array(found) if found else NOWHERE, thinnest


def overhang_mm2(vertices: Array, faces: Any) -> float:
    """Return the area that hangs over more than `OVERHANG_DEG` and does not lie on the bed."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    normals = np.cross(b - a, c - a)
    areas = np.linalg.norm(normals, axis=1)
    down = normals[:, 2] < -np.sin(np.radians(OVERHANG_DEG)) * areas
    lifted = np.minimum(np.minimum(a[:, 2], b[:, 2]), c[:, 2]) > vertices[:, 2].min() + 0.3
    return float(areas[down & lifted].sum() / 2)


def mesh_faults(vertices: Array, faces: Any, least_wall_mm: float) -> list[Fault]:
    """Return what keeps a mesh from being one printable solid; walls are looked at only if it is one.

    Cost: up to half a second.
    """
    if len(faces) == 0 or not np.isfinite(vertices).all():
        return [Fault("no mesh", "there is no triangle with finite corners. Export the part as STL in mm.", NOWHERE)]
    vertices, faces = weld(vertices, faces)
    faults = edge_faults(vertices, faces)
    if faults:
        return faults
    if signed_volume(vertices, faces) <= 0:
        return [Fault("inverted", "the triangles are turned inwards. Flip all of them.", NOWHERE)]
    pieces = shells(faces, len(vertices))
    volumes = [signed_volume(vertices, faces[pieces == i]) for i in range(pieces.max() + 1)]
    solid = [i for i, volume in enumerate(volumes) if volume > 0]
    if len(solid) > 1:
        small = faces[pieces == min(solid, key=lambda i: volumes[i])]
        faults.append(
            Fault(
                "floating piece",
                f"there are {len(solid)} pieces that hang together with nothing; the smallest has "
                f"{min(volumes[i] for i in solid):.1f} mm3. Join or remove them.",
                vertices[small].mean(1),
            )
        )
    places, thinnest = thin_places(vertices, faces, least_wall_mm)
    if len(places) > 1:
        faults.append(
            Fault(
                "thin wall",
                f"a wall is {thinnest:.2f} mm thin; expected at least {least_wall_mm:g} mm, two lines of the nozzle. "
                "Thicken it.",
                places,
            )
        )
    return faults

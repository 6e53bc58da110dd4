"""Triangles to and from files: STL and 3MF out, what trimesh reads in."""

import io
import zipfile
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np

from featherweight.robot.hardware.solids import Solid, triangles
from featherweight.robot.kinematics.dh import Array


def stl_bytes(solid: Solid) -> bytes:
    """Return a solid as binary STL, in mm; the same solid gives the same bytes."""
    return stl_of(*triangles(solid))


def stl_of(vertices: Array, faces: Any) -> bytes:
    """Return (V, 3) corners and (F, 3) indices as binary STL."""
    corners = vertices[faces].astype(np.float32)
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    record = np.zeros(len(corners), dtype=[("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
    record["normal"] = np.divide(normals, lengths, out=np.zeros_like(normals), where=lengths > 0)
    record["corners"] = corners
    head = b"binary STL, millimetres".ljust(80) + len(corners).to_bytes(4, "little")
    return head + record.tobytes()


_TYPES = (
    '<?xml version="1.0" encoding="UTF-8"?><Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
    '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
    '<Default Extension="model" ContentType="application/vnd.ms-package.3dmanufacturing-3dmodel+xml"/></Types>'
)
_RELATIONS = (
    '<?xml version="1.0" encoding="UTF-8"?>'
    '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships"><Relationship Id="rel0" '
    'Target="/3D/3dmodel.model" Type="http://schemas.microsoft.com/3dmanufacturing/2013/01/3dmodel"/></Relationships>'
)


def threemf_bytes(solids: list[tuple[str, Solid]]) -> bytes:
    """Return named solids as one 3MF file, in mm; each is an object of its own."""
    objects, items = [], []
    for number, (name, solid) in enumerate(solids, start=1):
        vertices, faces = triangles(solid)
        points = "".join(f'<vertex x="{x:.5f}" y="{y:.5f}" z="{z:.5f}"/>' for x, y, z in vertices)
        corners = "".join(f'<triangle v1="{a}" v2="{b}" v3="{c}"/>' for a, b, c in faces)
        objects.append(
            f'<object id="{number}" name={quoteattr(name)} type="model"><mesh><vertices>{points}</vertices>'
            f"<triangles>{corners}</triangles></mesh></object>"
        )
        items.append(f'<item objectid="{number}"/>')
    model = (
        '<?xml version="1.0" encoding="UTF-8"?><model unit="millimeter" xml:lang="en-US" '
        'xmlns="http://schemas.microsoft.com/3dmanufacturing/core/2015/02"><resources>'
        f"{''.join(objects)}</resources><build>{''.join(items)}</build></model>"
    )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in (("[Content_Types].xml", _TYPES), ("_rels/.rels", _RELATIONS), ("3D/3dmodel.model", model)):
            # A fixed date: the same parts give the same bytes.
            archive.writestr(zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0)), text, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()

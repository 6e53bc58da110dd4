"""Files of triangles."""

import io
import zipfile

import numpy as np
import pytest

from featherweight.robot.hardware.solids import box
from featherweight.robot.hardware.stl import stl_bytes, threemf_bytes

BLOCK = box((1, 11), (2, 22), (3, 33))


@pytest.mark.parametrize(("kind", "data"), [("stl", stl_bytes(BLOCK)), ("3mf", threemf_bytes([("a & b", BLOCK)]))])
def test_another_library_reads_back_the_same_solid(kind, data):
    trimesh = pytest.importorskip("trimesh")
    if kind == "3mf":
        pytest.importorskip("lxml")
        pytest.importorskip("networkx")
    mesh = trimesh.load(io.BytesIO(data), file_type=kind, force="mesh")
    assert mesh.is_watertight and mesh.volume == pytest.approx(6000)
    assert np.allclose(mesh.bounds, [[1, 2, 3], [11, 22, 33]])


def test_the_same_solid_gives_the_same_bytes_and_millimetres_are_named():
    assert threemf_bytes([("a", BLOCK)]) == threemf_bytes([("a", BLOCK)])
    model = zipfile.ZipFile(io.BytesIO(threemf_bytes([("a", BLOCK)]))).read("3D/3dmodel.model")
    assert b'unit="millimeter"' in model and model.count(b"<triangle ") == 12

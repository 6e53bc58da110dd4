"""Pictures of solids, drawn by the simulator's renderer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featherweight.robot.hardware.solids import Solid, placed, triangles
from featherweight.robot.hardware.stl import stl_of
from featherweight.robot.kinematics.dh import Array
from featherweight.robot.sim.graphics import import_mujoco, require_graphics

PRINTED, SERVO, GRIPPER, PALE = "0.23 0.51 0.74 1", "0.16 0.18 0.22 1", "0.85 0.47 0.16 1", "0.7 0.73 0.77 0.35"


@dataclass(frozen=True)
class Shown:
    """A solid in a picture, or (corners, triangles) of one; `color` is red, green, blue and opacity."""

    solid: Solid
    color: str = PRINTED

    @property
    def mesh(self) -> tuple[Array, Any]:
        """(V, 3) corners in mm and (F, 3) indices."""
        return self.solid if isinstance(self.solid, tuple) else triangles(self.solid)


def draw(
    shown: Sequence[Shown],
    width_px: int = 800,
    height_px: int = 600,
    azimuth_deg: float = 135.0,
    elevation_deg: float = -25.0,
    zoom: float = 1.0,
    floor: bool = True,
) -> Any:
    """Return an (H, W, 3) uint8 picture of solids in mm, the camera turned towards their middle.

    Raises:
        DeviceError: if no graphics work here; the message holds the install command.
    """
    require_graphics()
    mujoco = import_mujoco()
    assets: dict[str, bytes] = {}
    meshes, geoms = [], []
    drawn = [one.mesh for one in shown]
    low = np.min([vertices.min(0) for vertices, _ in drawn], axis=0)
    high = np.max([vertices.max(0) for vertices, _ in drawn], axis=0)
    for i, (one, mesh) in enumerate(zip(shown, drawn, strict=True)):
        assets[f"{i}.stl"] = stl_of(*mesh)
        meshes.append(f'<mesh name="m{i}" file="{i}.stl" scale="0.001 0.001 0.001" inertia="shell"/>')
        geoms.append(f'<geom type="mesh" mesh="m{i}" rgba="{one.color}" contype="0" conaffinity="0"/>')
    ground = f'<geom type="plane" size="2 2 0.1" pos="0 0 {low[2] / 1000 - 1e-4}" rgba="0.88 0.87 0.84 1"/>'
    text = (
        f'<mujoco><compiler meshdir=""/><visual><global offwidth="{width_px}" offheight="{height_px}" fovy="30"/>'
        '<headlight ambient="0.35 0.35 0.35" diffuse="0.45 0.45 0.45" specular="0.1 0.1 0.1"/>'
        '<quality shadowsize="2048"/><map znear="0.01"/></visual><asset>'
        '<texture type="skybox" builtin="flat" rgb1="1 1 1" rgb2="1 1 1" width="64" height="64"/>'
        f'{"".join(meshes)}</asset><worldbody><light pos="0.3 -0.5 1.5" dir="-0.2 0.3 -1" diffuse="0.4 0.4 0.4"/>'
        f"{ground if floor else ''}{''.join(geoms)}</worldbody></mujoco>"
    )
    model = mujoco.MjModel.from_xml_string(text, assets)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    camera = mujoco.MjvCamera()
    camera.lookat[:] = (low + high) / 2000
    camera.distance = float(np.linalg.norm(high - low)) / 1000 * 1.9 / zoom
    camera.azimuth, camera.elevation = azimuth_deg, elevation_deg
    renderer = mujoco.Renderer(model, height_px, width_px)
    try:
        renderer.update_scene(data, camera)
        return renderer.render().copy()
    finally:
        renderer.close()


def of_arm(assembly: Any, q_deg: Any, highlight: frozenset[str] = frozenset(), bodies: int = 9) -> list[Shown]:
    """Return what a picture of the arm in a pose shows; pieces named in `highlight` stand out, the others are pale."""
    poses: Array = assembly.poses(q_deg)
    found = []
    for piece in assembly.pieces:
        if piece.body < bodies:
            color = SERVO if not piece.is_printed else GRIPPER if piece.body >= 5 else PRINTED
            if highlight:
                color = GRIPPER if piece.name in highlight else PALE if piece.is_printed else SERVO
            found.append(Shown(placed(piece.solid, poses[piece.body]), color))
    return found

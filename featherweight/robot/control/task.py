"""Controllers of a point in space.

The closed-form solution comes first: the arm moves towards it in joint space, so nothing gets stuck at limits, which
happens to one target in thirty with the published quadratic program alone.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from featherweight.errors import ConfigError, MissingExtraError, did_you_mean
from featherweight.robot.control.singularity import singularity_scale
from featherweight.robot.kinematics.dh import LIMIT_RAD, TOOL_M, Array, forward, jacobian, quaternion
from featherweight.robot.kinematics.inverse import approach_angles, nearest_position
from featherweight.robot.safety.guard import FINGER_M, HAND_RADIUS_M
from featherweight.robot.sim.graphics import import_mujoco
from featherweight.robot.sim.mjcf import ARM_JOINT_NAMES, build_mjcf

MAX_SPEED_DEG_S = 80.0
"""A little below what the firmware can follow."""
PERIOD_S = 0.008
GAIN, DAMPING, TRANSLATION_SHARE = 4.0, 0.01, 0.999
"""eta, lambda and alpha of the published controller."""

Step = Callable[[Array, Array, Array | None], Array]


class TaskController:
    """Moves the wrist towards a point, and optionally the tool towards a direction.

    Args:
        solver: "analytic" (closed form, then a straight line in joint space), "mink" (quadratic program with joint and
            speed limits, drawn to the closed form), "official" (the published quadratic program, for comparison).
        max_speed_deg_s: largest speed of any joint ("official" has no such limit).
        period_s: time of one step.
        avoid_collisions: keep links and fingers off the table, the base and each other; of "mink" alone (the safety
            guard looks at the goals of all).
    Raises:
        ConfigError: if the solver is unknown.
        MissingExtraError: if its package is not installed.
    """

    def __init__(
        self,
        solver: str = "analytic",
        max_speed_deg_s: float = MAX_SPEED_DEG_S,
        period_s: float = PERIOD_S,
        avoid_collisions: bool = True,
    ) -> None:
        solvers: dict[str, Callable[[float, float], Step]] = {
            "analytic": _analytic,
            "mink": partial(_mink, avoid_collisions=avoid_collisions),
            "official": _official,
        }
        if solver not in solvers:
            raise ConfigError(
                f"TaskController: solver={solver!r} is unknown; expected a solver. {did_you_mean(solver, solvers)}"
            )
        self.period_s = period_s
        self.max_step_rad = math.radians(max_speed_deg_s) * period_s
        self._step = solvers[solver](self.max_step_rad, period_s)

    def step(self, q_rad: ArrayLike, position_m: ArrayLike, approach: ArrayLike | None = None) -> Array:
        """Return the joint angles after one period.

        Args:
            q_rad: (5,) now.
            position_m: (3,) wanted wrist in the D-H base; beyond the reach the nearest point is taken.
            approach: (3,) wanted direction of the tool; None leaves joints 4 and 5.
        Returns:
            (5,) angles within the limits.
        """
        q, position = np.asarray(q_rad, dtype=np.float64), np.asarray(position_m, dtype=np.float64)
        if not (np.isfinite(q).all() and np.isfinite(position).all()):
            raise ConfigError(
                f"TaskController: position_m={position.tolist()} is not finite; expected numbers. Correct it."
            )
        return self._step(q, position, None if approach is None else np.asarray(approach, dtype=np.float64))

    def twist(self, q_rad: ArrayLike, velocity_m_s: ArrayLike, tool_m: float = 0.0) -> Array:
        """Return the joint angles after one period of a wanted velocity of the wrist or tool point.

        Slower towards singularities, and never faster than the speed limit in any joint.

        Args:
            q_rad: (5,) now.
            velocity_m_s: (3,) in the D-H base.
            tool_m: of the point that moves.
        """
        q = np.asarray(q_rad, dtype=np.float64)
        j = jacobian(q, tool_m)[:3]
        rate = j.T @ np.linalg.solve(j @ j.T + DAMPING**4 * np.eye(3), np.asarray(velocity_m_s, dtype=np.float64))
        step = rate * self.period_s * singularity_scale(q, tool_m)
        fastest = float(np.abs(step).max())
        if fastest > self.max_step_rad:
            step *= self.max_step_rad / fastest
        return np.clip(q + step, -LIMIT_RAD, LIMIT_RAD)


def closed_form(q: Array, position: Array, approach: Array | None) -> Array:
    """Return the (5,) joints for a wrist point and, if given, a direction of the tool."""
    goal = q.copy()
    goal[:3] = nearest_position(position)
    if approach is not None:
        goal[3:] = approach_angles(goal[:3], approach, float(q[3]))
    return goal


def _analytic(max_step_rad: float, period_s: float) -> Step:
    def step(q: Array, position: Array, approach: Array | None) -> Array:
        change = closed_form(q, position, approach) - q
        farthest = float(np.abs(change).max())
        return q + change * min(1.0, max_step_rad / farthest) if farthest > 0 else q

    return step


def _official(max_step_rad: float, period_s: float) -> Step:
    daqp = _import("daqp", "official")

    def step(q: Array, position: Array, approach: Array | None) -> Array:
        here, rotation = forward(q)
        goal_rotation = rotation if approach is None else forward(closed_form(q, position, approach))[1]
        full = jacobian(q)
        r, r_goal = quaternion(rotation), quaternion(goal_rotation)
        r_rates = 0.5 * np.stack([_product(np.concatenate([[0.0], axis]), r) for axis in full[3:].T], axis=1)
        n = np.stack([_product(rate * _CONJUGATE, r_goal) for rate in r_rates.T], axis=1)
        relative = _product(r * _CONJUGATE, r_goal)
        one = np.array([1.0, 0.0, 0.0, 0.0])
        error_r = min(relative - one, relative + one, key=lambda error: float(error @ error))
        j, a = full[:3], TRANSLATION_SHARE
        hessian = a * j.T @ j + (1 - a) * n.T @ n + DAMPING**2 * np.eye(5)
        linear = GAIN * (a * j.T @ (here - position) + (1 - a) * n.T @ error_r)
        upper, lower, sense = LIMIT_RAD - q, -LIMIT_RAD - q, np.zeros(5, dtype=np.int32)
        u = daqp.solve(hessian, linear, np.zeros((0, 5)), upper, lower, sense)[0]
        return q + np.asarray(u) * period_s

    return step


_CONJUGATE = np.array([1.0, -1.0, -1.0, -1.0])


def _product(p: Array, q: Array) -> Array:
    (a, b, c, d), (e, f, g, h) = p, q
    return np.array(
        [
            a * e - b * f - c * g - d * h,
            a * f + b * e + c * h - d * g,
            a * g - b * h + c * e + d * f,
            a * h + b * g - c * f + d * e,
        ]
    )


def _mink(max_step_rad: float, period_s: float, avoid_collisions: bool) -> Step:
    import_mujoco()  # first, with graphics that work: mink would import it without
    mink = _import("mink", "mink")
    model = solid_model()
    configuration = mink.Configuration(model)
    wrist = mink.FrameTask("wrist", "site", position_cost=1.0, orientation_cost=0.001)
    posture = mink.PostureTask(model, cost=0.1)
    limits = [
        mink.ConfigurationLimit(model),
        mink.VelocityLimit(model, dict.fromkeys(ARM_JOINT_NAMES, max_step_rad / period_s)),
    ]
    if avoid_collisions:
        # mink 1.3 bounds the way of one period by a speed (distance / period); so its gain is given the period.
        near = {"gain": 0.85 * period_s, "collision_detection_distance": 0.03}
        limits.append(mink.CollisionAvoidanceLimit(model, _solid_pairs(model), **near))

    def step(q: Array, position: Array, approach: Array | None) -> Array:
        goal = closed_form(q, position, approach)
        configuration.update(goal)
        wrist.set_target(configuration.get_transform_frame_to_world("wrist", "site"))
        posture.set_target(goal)
        configuration.update(q)
        try:
            rate = mink.solve_ik(configuration, [wrist, posture], period_s, "daqp", limits=limits)
        except mink.NoSolutionFound:
            # In a posture that touches already, the limits may leave no motion at all: then the arm stays.
            return q
        result: Array = np.clip(q + rate * period_s, -LIMIT_RAD, LIMIT_RAD)
        return result

    return step


def solid_model() -> Any:
    """Return the arm with a solid hand of the length of the gripper, in which everything may touch everything."""
    mujoco = import_mujoco()
    spec = mujoco.MjSpec.from_string(build_mjcf("empty", gripper=False))
    spec.body("link5").add_geom(
        name="hand",
        type=mujoco.mjtGeom.mjGEOM_CAPSULE,
        fromto=[0, -HAND_RADIUS_M, 0, 0, HAND_RADIUS_M - TOOL_M - FINGER_M, 0],
        size=[HAND_RADIUS_M, 0, 0],
    )
    model = spec.compile()
    model.geom_contype[:] = model.geom_conaffinity[:] = 1
    # The range of commands, not of the stops behind it: what is cut off afterwards was counted on by the program.
    model.jnt_range[:] = -LIMIT_RAD, LIMIT_RAD
    return model


def _solid_pairs(model: Any) -> list[tuple[list[int], list[int]]]:
    """What must not meet: table and base with everything behind the shoulder, the hand with the upper arm."""
    of_body = {
        model.body(i).name: [g for g in range(model.ngeom) if model.geom_bodyid[g] == i] for i in range(model.nbody)
    }
    outer = [geom for name in ("link3", "link4", "link5") for geom in of_body[name]]
    return [(of_body["world"], outer), (of_body["base"], outer), (of_body["link2"], of_body["link5"])]


def _import(package: str, solver: str) -> Any:
    import importlib

    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingExtraError(
            f"TaskController: solver={solver} needs the package {package}, which is not installed; expected it. "
            "Run pip install featherweight[robot]."
        ) from error

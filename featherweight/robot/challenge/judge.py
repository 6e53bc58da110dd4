"""The judge on the robot's side: looks at the world 30 times a second and writes down what it sees.

It gives no points; `score.score_log` does, from the log alone.
"""

from typing import Any

import numpy as np

from featherweight.robot.challenge.log import VERSION, Record
from featherweight.robot.challenge.score import FPS, PlacedRule
from featherweight.robot.safety.controller import Controller
from featherweight.robot.sim.graphics import import_mujoco
from featherweight.robot.sim.world import World

HIT_N = 2.0
"""Force of a contact above which it is a collision."""
BIN_HALF_M = 0.04


class Judge:
    """Collects the records of one run.

    Args:
        world: of the run.
        seed: of its layout.
        rules: further facts for the first record, such as the impairment of the network.
    """

    def __init__(self, world: World, seed: int, rules: dict[str, Any] | None = None) -> None:
        self._mujoco = import_mujoco()
        self._world, self._due_s = world, 0.0
        self._bodies = [world.model.body(i).name for i in range(world.model.nbody)]
        self.records: list[Record] = [
            {
                "kind": "start",
                "version": VERSION,
                "seed": seed,
                "cubes": len(world.cubes),
                "bin": _round(world.bin_m),
                "half": BIN_HALF_M,
                **(rules or {}),
            }
        ]
        self._hits: set[tuple[str, str]] = set()
        self._rules = [PlacedRule(_round(world.bin_m), BIN_HALF_M) for _ in world.cubes]

    def look(self, time_s: float, controller: Controller, gripper_deg: float) -> None:
        """Look at the world after a control step.

        Args:
            time_s: since the start of the run.
            controller: of the robot.
            gripper_deg: reported angle of the gripper.
        """
        self._hits |= self._find_hits()
        if time_s < self._due_s - 1e-6:
            return
        self._due_s += 1 / FPS
        world = self._world
        cubes = [_round(world.cube_m(i)) for i in range(len(world.cubes))]
        for rule, cube in zip(self._rules, cubes, strict=True):
            rule.see(round(time_s, 4), cube, gripper_deg)
        self.records.append(
            {
                "kind": "frame",
                "t": round(time_s, 4),
                "tool": _round(world.tool_m),
                "cubes": cubes,
                "gripper": gripper_deg,
                "mode": controller.mode.name,
                "hits": sorted(self._hits),
            }
        )
        self._hits.clear()

    @property
    def is_complete(self) -> bool:
        """Whether every cube counts as placed in the log as it is; a run that ends before loses them."""
        return all(rule.at_s is not None for rule in self._rules)

    def finish(self, controller: Controller, round_trip_ms: float) -> list[Record]:
        """Return the whole log."""
        end = {"kind": "end", "guard_trips": self._guard_trips(controller), "round_trip_ms": round(round_trip_ms, 3)}
        return [*self.records, end]

    def _guard_trips(self, controller: Controller) -> int:
        """Wishes that the guard refused, counted once for each time that it began to."""
        return int(controller.counters["guard trips"])

    def _find_hits(self) -> set[tuple[str, str]]:
        """Return the pairs of the arm and table, bin or itself that press harder than `HIT_N`; cubes may be touched."""
        model, data, found = self._world.model, self._world.data, set()
        force = np.zeros(6)
        for i in range(data.ncon):
            contact = data.contact[i]
            names = sorted(self._bodies[model.geom_bodyid[geom]] for geom in (contact.geom1, contact.geom2))
            if not any(map(_is_arm, names)) or any(name.startswith("cube") for name in names):
                continue
            self._mujoco.mj_contactForce(model, data, i, force)
            if np.linalg.norm(force[:3]) > HIT_N:
                found.add((names[0], names[1]))
        return found


def _is_arm(body: str) -> bool:
    return body.startswith(("link", "finger", "gear", "base"))


def _round(point: Any) -> list[float]:
    return [round(float(value), 5) for value in point]

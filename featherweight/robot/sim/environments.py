"""Gymnasium environments of the simulator: the same whole degrees and the same speed as the kit, faster than time.

``gymnasium.make("featherweight.robot.sim.environments:fw/UMIRobotReach-v0")``, or `register_environments` and then the
name alone. Observations and actions are dicts with the keys of the Robot class.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from featherweight.errors import MissingExtraError
from featherweight.robot.driver.target import round_with_hysteresis
from featherweight.robot.kinematics.inverse import table_top
from featherweight.robot.kit import JOINT_KEYS, LIMIT_DEG, SERVOS, TOP_SPEED_DEG_S
from featherweight.robot.sim.cameras import Cameras
from featherweight.robot.sim.world import World

if TYPE_CHECKING:
    import gymnasium
else:
    try:
        import gymnasium
    except ImportError as error:
        raise MissingExtraError(
            "robot: package=gymnasium is not installed; expected it for environments. Run pip install "
            "featherweight[robot]."
        ) from error

CONTROL_HZ = 30.0
IDS = {"reach": "fw/UMIRobotReach-v0", "pick": "fw/UMIRobotPick-v0", "challenge": "fw/UMIRobotChallenge-v0"}
REACHED_M, LIFTED_M = 0.010, 0.05
MAX_STEPS = {"reach": 150, "pick": 450, "challenge": 5400}


class ArmEnvironment(gymnasium.Env[dict[str, Any], dict[str, Any]]):
    """The arm and a task.

    Observation: joint key -> reported degrees, "cube_m" (n, 3), "bin_m" (3,), "goal_m" (3,), "tool_m" (3,), and
    pictures of the cameras. Action: joint key -> degrees. Reward: minus the distance that is left (reach), 1 for a
    lifted cube (pick), the number of newly placed cubes (challenge).

    Args:
        task: "reach", "pick" or "challenge".
        cameras: names of cameras in observations.
        cubes: of the challenge.
        width_px: of pictures.
        height_px: of pictures.
        render_mode: "rgb_array" or None.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": CONTROL_HZ}

    def __init__(
        self,
        task: str = "reach",
        cameras: tuple[str, ...] = (),
        cubes: int = 3,
        width_px: int = 320,
        height_px: int = 240,
        render_mode: str | None = None,
    ) -> None:
        self.render_mode = render_mode
        self.task = task
        self.world = World("challenge", cubes=cubes if task == "challenge" else 1)
        names = tuple(dict.fromkeys([*cameras, *(["front"] if render_mode else [])]))
        self._shown = cameras
        self._cameras = Cameras(self.world, names, width_px, height_px) if names else None
        angle = gymnasium.spaces.Box(-LIMIT_DEG, LIMIT_DEG, (), np.float64)
        self.action_space = gymnasium.spaces.Dict(dict.fromkeys(JOINT_KEYS, angle))
        point = gymnasium.spaces.Box(-2.0, 2.0, (3,), np.float64)
        spaces: dict[str, Any] = dict.fromkeys(JOINT_KEYS, angle)
        spaces |= {"bin_m": point, "goal_m": point, "tool_m": point}
        spaces["cube_m"] = gymnasium.spaces.Box(-2.0, 2.0, (len(self.world.cubes), 3), np.float64)
        spaces |= {name: gymnasium.spaces.Box(0, 255, (height_px, width_px, 3), np.uint8) for name in cameras}
        self.observation_space = gymnasium.spaces.Dict(spaces)
        self._goal_m = np.zeros(3)
        self._q_deg = np.zeros(SERVOS)
        self._target: list[int] = [0] * SERVOS
        self._placed = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode; the same seed gives the same layout."""
        super().reset(seed=seed)
        self.world.reset(int(self.np_random.integers(2**31)))
        self._q_deg, self._target, self._placed = np.zeros(SERVOS), [0] * SERVOS, 0
        while True:
            radius, angle = self.np_random.uniform(0.11, 0.25), self.np_random.uniform(-1, 1)
            height = self.np_random.uniform(0.02, 0.065)
            self._goal_m = np.array([radius * np.cos(angle), radius * np.sin(angle), height])
            # Room for the fingers beside the walls of the bin and the cube.
            from_bin = np.linalg.norm(self._goal_m[:2] - self.world.bin_m[:2])
            from_cube = np.linalg.norm(self._goal_m[:2] - self.world.cube_m()[:2])
            if from_bin > 0.12 and from_cube > 0.05 and table_top(self._goal_m) is not None:
                return self._observe(), {}

    def step(self, action: dict[str, Any]) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Run a thirtieth of a second; the servos move by whole degrees at the firmware's speed."""
        for i, key in enumerate(JOINT_KEYS):
            wish = float(np.clip(np.nan_to_num(float(action[key]), nan=self._target[i]), -LIMIT_DEG, LIMIT_DEG))
            self._target[i] = round_with_hysteresis(wish, self._target[i])
        loops = 3
        most = TOP_SPEED_DEG_S / CONTROL_HZ / loops
        for _ in range(loops):
            self._q_deg += np.clip(np.array(self._target) - self._q_deg, -most, most)
            self.world.step(np.round(self._q_deg), 1 / CONTROL_HZ / loops)
        reward, is_done = self._judge()
        return self._observe(), reward, is_done, False, {"is_success": is_done}

    def render(self) -> Any:
        """Return the front camera's picture."""
        return self._cameras.render()["front"] if self._cameras is not None else None

    def close(self) -> None:
        """Give the graphics back."""
        if self._cameras is not None:
            self._cameras.close()
            self._cameras = None

    def _judge(self) -> tuple[float, bool]:
        world = self.world
        if self.task == "reach":
            distance = float(np.linalg.norm(world.tool_m - self._goal_m))
            return -distance, distance < REACHED_M
        if self.task == "pick":
            is_lifted = bool(world.cube_m()[2] > LIFTED_M)
            return float(is_lifted), is_lifted
        placed = sum(world.is_placed(i) for i in range(len(world.cubes)))
        gained, self._placed = placed - self._placed, placed
        return float(gained), placed == len(world.cubes)

    def _observe(self) -> dict[str, Any]:
        world = self.world
        observation: dict[str, Any] = {
            key: np.array(float(round(q))) for key, q in zip(JOINT_KEYS, self._q_deg, strict=True)
        }
        observation["cube_m"] = np.stack([world.cube_m(i) for i in range(len(world.cubes))])
        observation |= {"bin_m": world.bin_m, "goal_m": self._goal_m.copy(), "tool_m": world.tool_m}
        if self._shown and self._cameras is not None:
            pictures = self._cameras.render()
            observation |= {name: pictures[name] for name in self._shown}
        return observation


def register_environments() -> list[str]:
    """Tell Gymnasium about the environments; return their ids. Twice is fine."""
    for task, id in IDS.items():
        if id not in gymnasium.registry:
            gymnasium.register(id, ArmEnvironment, kwargs={"task": task}, max_episode_steps=MAX_STEPS[task])
    return list(IDS.values())


register_environments()

"""Behaviour cloning as a task for `fw train`: the next actions of an expert from the state, out of a data set."""

from pydantic import Field
from torch import Tensor, nn

from featherweight.robot.learning.bc import BCConfig, BCPolicy
from featherweight.robot.learning.demonstrated import DemonstratedConfig, DemonstratedTask, chunk_errors
from featherweight.training.task import Batch


class RobotTaskConfig(DemonstratedConfig):
    """What stands under `task` in a recipe."""

    chunk: int = Field(default=20, ge=1, le=200)
    """Actions of one prediction."""
    hidden: int = Field(default=256, ge=4)
    """Width of the hidden layers."""
    layers: int = Field(default=3, ge=1)
    """Hidden layers."""


class RobotTask(DemonstratedTask):
    """Behaviour cloning of the state; see `DemonstratedTask`.

    Args:
        config: options.
        seed: of the weights.
    """

    Config = RobotTaskConfig
    config: RobotTaskConfig

    def __init__(self, config: RobotTaskConfig, *, seed: int) -> None:
        self.config, self.seed = config, seed
        self._read(config.chunk, (), (0, 0))

    def new_policy(self) -> BCPolicy:
        """See `DemonstratedTask`."""
        options = {key: getattr(self.config, key) for key in ("chunk", "hidden", "layers")}
        return BCPolicy(BCConfig(**options, fps=self.fps))

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        """Return the sum over frames of the mean absolute error of a chunk, in deviations, and the number of frames."""
        assert isinstance(model, BCPolicy)
        normal = model.normal_chunks(batch["features"])
        per_frame = chunk_errors(normal, model.normal_targets(batch["targets"]), batch["weights"])
        return per_frame.float().sum(), len(per_frame)

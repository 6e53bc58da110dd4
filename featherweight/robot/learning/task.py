"""Behaviour cloning as a task for `fw train`: the next actions of an expert from the state, out of a data set."""

from torch import Tensor, nn

from featherweight.robot.learning.bc import BCConfig, BCPolicy
from featherweight.robot.learning.demonstrated import DemonstratedTask, chunk_errors
from featherweight.robot.learning.options import RobotTaskConfig
from featherweight.training.task import Batch


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

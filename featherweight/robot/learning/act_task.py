"""ACT as a task for `fw train`: the next actions from pictures and joints, or from the state alone."""

import torch
from torch import Tensor, nn

from featherweight.robot.learning.act import ACTConfig, ACTPolicy
from featherweight.robot.learning.demonstrated import DemonstratedTask, chunk_errors
from featherweight.robot.learning.options import ACTShape, ACTTaskConfig
from featherweight.training.task import Batch


class ACTTask(DemonstratedTask):
    """Action chunking with a transformer; see `DemonstratedTask`.

    Args:
        config: options.
        seed: of the weights.
    """

    Config = ACTTaskConfig
    config: ACTTaskConfig

    def __init__(self, config: ACTTaskConfig, *, seed: int) -> None:
        self.config, self.seed = config, seed
        self._read(config.chunk_size, config.cameras, (config.picture_height_px, config.picture_width_px))

    def new_policy(self) -> ACTPolicy:
        """See `DemonstratedTask`."""
        shape = {key: getattr(self.config, key) for key in ACTShape.model_fields}
        return ACTPolicy(ACTConfig(**shape, fps=self.fps, features=self.features, cameras=self.config.cameras))

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        """Return the sum over frames of the mean absolute error of a chunk, in deviations, and the number of frames.

        In training with a latent vector, its weighted divergence from a normal one is added.
        """
        assert isinstance(model, ACTPolicy)
        latent = divergence = None
        if model.training and model.config.use_vae:
            mean, log_variance = model.encode_style(batch)
            latent = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
            divergence = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(dim=-1)
        normal = model.normal_chunks(batch, latent)
        per_frame = chunk_errors(normal, model.normal_targets(batch["targets"]), batch["weights"])
        if divergence is not None:
            per_frame = per_frame + self.config.kl_weight * divergence
        return per_frame.float().sum(), len(per_frame)

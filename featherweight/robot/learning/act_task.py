"""ACT as a task for `fw train`: the next actions from pictures and joints, or from the state alone."""

import torch
from torch import Tensor, nn

from featherweight.robot.learning.act import ACTConfig, ACTPolicy
from featherweight.robot.learning.demonstrated import DemonstratedTask, as_policy, chunk_errors
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
        size_px = config.picture_height_px, config.picture_width_px
        self._read(config.chunk_size, config.cameras, size_px, config.places_weight > 0)

    def new_policy(self) -> ACTPolicy:
        """See `DemonstratedTask`."""
        shape = {key: getattr(self.config, key) for key in ACTShape.model_fields}
        shape |= {"cameras": self.config.cameras, "sees_places": self.config.places_weight > 0}
        return ACTPolicy(ACTConfig(**shape, fps=self.fps, features=self.features))

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        """Return the sum over frames of the mean absolute error of a chunk, in deviations, and the number of frames.

        In training the weighted divergence of the latent vector from a normal one is added, and the weighted error of
        the places that the eyes say.
        """
        assert isinstance(model, ACTPolicy)
        features, tokens, places = model.look(batch)
        latent = divergence = None
        if model.training and model.config.use_vae:
            mean, log_variance = model.encode_style(batch, features)
            latent = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
            divergence = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(dim=-1)
        normal = model.normal_chunks(features, tokens, latent)
        per_frame = chunk_errors(normal, model.normal_targets(batch["targets"]), batch["weights"])
        if divergence is not None:
            per_frame = per_frame + self.config.kl_weight * divergence
        if model.training and places is not None:
            head = model.scene_head
            off = (head.normal(places) - head.normal(batch["places"])).abs().mean(dim=-1)
            per_frame = per_frame + self.config.places_weight * off
        return per_frame.float().sum(), len(per_frame)

    def evaluate(self, model: nn.Module, *, micro_batch_size: int) -> dict[str, float]:
        """See `DemonstratedTask`; with eyes that learn places, their mean distance from where cube and bin are, too."""
        told = super().evaluate(model, micro_batch_size=micro_batch_size)
        policy = as_policy(model)
        if not isinstance(policy, ACTPolicy) or not policy.config.sees_places:
            return told
        was_training, total, count = model.training, 0.0, 0.0
        device = next(model.parameters()).device
        model.eval()
        try:
            with torch.inference_mode():
                for rows, counts in self.held_out_share(micro_batch_size):
                    batch = {name: values.to(device) for name, values in rows.items()}
                    places = policy.look(batch)[2]
                    if counts and places is not None:
                        off = (places - batch["places"]).unflatten(-1, (2, 2)).norm(dim=-1)
                        total, count = total + float(off.sum()), count + off.numel()
        finally:
            model.train(was_training)
        total, count = self.share.sums(total, count)
        return {**told, "places_error_mm": 1000 * total / count}

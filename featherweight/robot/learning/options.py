"""Options of the tasks on demonstrations: what stands beside `name` under the recipe's key `task`. Without torch."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from featherweight.config import Config
from featherweight.errors import CheckpointError

POLICY_FILE = "policy.json"
"""What makes a folder that of a policy."""
STRIDE = 4
"""Pixels of a picture for one cell of the grid on which the stem of ACT finds places."""


class DemonstratedConfig(Config):
    """Where demonstrations come from."""

    data: str
    """Folder of a data set; `fw robot record --leader expert` makes one."""
    episodes: int | None = Field(default=None, ge=2)
    """The first ones alone; None takes all."""
    held_out: float = Field(default=0.1, gt=0, lt=1)
    """Share of the episodes, the last ones, that only measure the loss; at least one."""
    start_from: str | None = None
    """Folder of a trained policy whose weights and scales are the start, such as that of another kit."""


class RobotTaskConfig(DemonstratedConfig):
    """What stands under `task` in a recipe."""

    chunk: int = Field(default=20, ge=1, le=200)
    """Actions of one prediction."""
    hidden: int = Field(default=256, ge=4)
    """Width of the hidden layers."""
    layers: int = Field(default=3, ge=1)
    """Hidden layers."""


class ACTShape(Config):
    """What one chooses of an ACT policy."""

    chunk_size: int = Field(default=20, ge=1, le=200)
    """Actions of one prediction."""
    n_action_steps: int = Field(default=1, ge=1)
    """Actions that are carried out before the next prediction."""
    temporal_ensemble_coeff: float | None = Field(default=0.01, ge=0)
    """Overlapping chunks are blended with the weights exp(-coeff i), the oldest first; None takes the newest alone."""
    picture_height_px: int = Field(default=96, ge=16, multiple_of=STRIDE)
    """Pictures are scaled to this height."""
    picture_width_px: int = Field(default=128, ge=16, multiple_of=STRIDE)
    """Pictures are scaled to this width."""
    keypoints: int = Field(default=32, ge=1)
    """Places that the stem finds in a picture."""
    dim_model: int = Field(default=128, ge=8)
    """Width of the transformer."""
    n_heads: int = Field(default=4, ge=1)
    """Heads of its attention."""
    dim_feedforward: int = Field(default=512, ge=8)
    """Width between the two linears of a layer."""
    n_encoder_layers: int = Field(default=2, ge=1)
    """Layers that mix what is seen."""
    n_decoder_layers: int = Field(default=1, ge=1)
    """Layers that turn it into actions."""
    use_vae: bool = True
    """Whether a latent vector carries the style of a demonstration in training."""
    latent_dim: int = Field(default=32, ge=1)
    """Numbers of the latent vector."""
    n_vae_encoder_layers: int = Field(default=2, ge=1)
    """Layers of the encoder of actions."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share left out in training."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.dim_model % self.n_heads:
            raise ValueError(
                f"n_heads={self.n_heads} does not divide dim_model={self.dim_model}; expected a divisor. Change one."
            )
        if self.n_action_steps > self.chunk_size:
            raise ValueError(
                f"n_action_steps={self.n_action_steps} is more than chunk_size={self.chunk_size}; expected at most "
                "that. Lower it."
            )
        if self.temporal_ensemble_coeff is not None and self.n_action_steps != 1:
            raise ValueError(
                f"n_action_steps={self.n_action_steps} leaves nothing to blend; expected 1 with "
                "temporal_ensemble_coeff. Set that to null."
            )
        return self


class ACTTaskConfig(ACTShape, DemonstratedConfig):
    """What stands under `task` in a recipe."""

    cameras: list[str] = []
    """Cameras of the data set that the policy sees; none: it sees where cube and bin are, as behaviour cloning does."""
    kl_weight: float = Field(default=10.0, ge=0)
    """Weight of how far the latent vector is from a normal one."""
    places_weight: float = Field(default=0.0, ge=0)
    """Weight of the mean error, in deviations, of where the eyes say that cube and bin are; the data set has to tell
    where they are. 0 leaves the eyes to the error of the actions alone."""

    @model_validator(mode="after")
    def _check_places(self) -> Self:
        if self.places_weight and not self.cameras:
            raise ValueError(
                f"places_weight={self.places_weight:g} has no eyes to teach; expected cameras. Name some, or leave "
                "the weight out: without cameras the policy is told the places."
            )
        return self


def policy_folder(folder: str | Path) -> Path:
    """Return where a policy lies: in a folder, or in its `model`.

    Raises:
        CheckpointError: if there is none.
    """
    found = next((place for place in (Path(folder), Path(folder) / "model") if (place / POLICY_FILE).exists()), None)
    if found is None:
        raise CheckpointError(
            f"policy: folder={folder} holds no policy.json; expected a trained policy. Train one with fw robot train."
        )
    return found

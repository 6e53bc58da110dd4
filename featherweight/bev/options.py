"""Options of the task: what stands beside `name: bev` in a recipe."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from featherweight.bev.loss_weights import LossWeights
from featherweight.config import Config

if TYPE_CHECKING:
    from featherweight.bev.model.configuration_focusbev import FocusBEVConfig


class BEVConfig(Config):
    """Options of the task."""

    data: str
    """Folder in nuScenes' format: a download, or what `fw bev synth` drew."""
    version: str | None = None
    """Folder of tables, such as v1.0-trainval; None takes the only one."""
    cameras: list[str] | None = None
    """Channels, each a sample of its own; None: the front camera of the data set. Published scores of nuScenes use all
    six."""
    split: str | None = None
    """Which drives train and which judge; None takes the default of the data set. Of nuScenes: "pon", which shares no
    street between the two, or "official", which does."""
    limit_sequences: int | None = Field(default=None, ge=1)
    """Train on so many of the drives, the first by name."""
    label_mode: Literal["exact", "pon"] = "exact"
    """How polygons fill cells; "pon" for scores that are compared with published ones."""
    lidar_mask: bool = True
    """Leave cells out that no laser beam reached."""
    preset: str = "tiny"
    """Size of the network."""
    model: dict[str, Any] = {}
    """Changes to the preset, such as view_transform, use_cycle, memory_length."""
    checkpoint: str | None = None
    """Folder of a trained network to begin with."""
    loss: LossWeights = LossWeights()
    """Weights of the terms."""
    flip: float = Field(default=0.5, ge=0, le=1)
    """Share of samples that are mirrored, ground and camera with them."""
    color_jitter: float = Field(default=0.2, ge=0, lt=1)
    """Largest change of brightness and contrast."""
    pitch_jitter_deg: float = Field(default=0.0, ge=0, le=3)
    """Standard deviation of a pitch (and half of it of a roll) that is drawn anew at each visit and hidden from the
    calibration; the pitch head learns it."""
    zoom_jitter: float = Field(default=0.0, ge=0, le=0.5)
    """Largest change of the focal length as a share, such as 0.2: for cameras other than those of the data."""
    pose_noise: float = Field(default=0.1, ge=0, le=1)
    """Share of samples whose past poses get a localiser's error (0.1 m, 0.3 degrees), where there is a memory."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Judge and save an average of the weights in which each step keeps this share of the steps before, such as 0.999;
    None: the weights themselves."""
    memory_dropout: float = Field(default=0.25, ge=0, le=1)
    """Share of samples that train without their memory."""
    supervise_memory: bool = True
    """Whether cells that only past frames saw count as seen, where there is a memory."""


def new_model_config(
    config: BEVConfig, trained_sequences: Sequence[str] = (), classes: str = "pon14"
) -> "FocusBEVConfig":
    """Return the options of the network that the task's options ask for.

    Args:
        config: options of the task.
        trained_sequences: drives that train it.
        classes: name of the classes of the data.
    """
    from featherweight.bev.model.configuration_focusbev import PRESETS, FocusBEVConfig

    own: dict[str, Any] = {"label_mode": config.label_mode, "trained_sequences": list(trained_sequences)}
    own["classes"] = classes
    if config.label_mode == "pon":
        own["grid"] = {**PRESETS.get(config.preset, {}).get("grid", {}), "anchor": "corner"}
    return FocusBEVConfig.preset(config.preset, **{**own, **config.model})


def continued_model_config(config: BEVConfig) -> "FocusBEVConfig":
    """Return the options of the checkpoint, with the changes that the task asks for, such as a memory."""
    from featherweight.bev.model.configuration_focusbev import FocusBEVConfig

    assert config.checkpoint is not None
    kept: FocusBEVConfig = FocusBEVConfig.from_pretrained(config.checkpoint)
    return FocusBEVConfig.from_dict({**kept.to_dict(), **config.model}) if config.model else kept

"""Options of the network, as transformers keeps them, and the presets."""

from typing import Any, ClassVar, Literal, get_args

from transformers import PreTrainedConfig

from featherweight.bev.data.classes import find_classes
from featherweight.bev.grid import BEVGridConfig
from featherweight.errors import ConfigError, did_you_mean

ViewTransform = Literal["column", "upright", "ipm", "mlp"]

_RESNET_18 = {
    "model_type": "resnet",
    "layer_type": "basic",
    "depths": [2, 2, 2, 2],
    "hidden_sizes": [64, 128, 256, 512],
}
_RESNET_50 = {"model_type": "resnet"}
_TINY: dict[str, Any] = {
    "image_size": (128, 224),
    "hidden_channels": 32,
    "decoder_channels": (32, 64),
    "decoder_blocks": 1,
    "feature_resolution": 1.0,
    "grid": {"resolution": 0.5, "anchor": "center"},
}
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {**_TINY, "level_strides": (2,)},
    "tiny-columns": {**_TINY, "level_strides": (4,), "view_transform": "column"},
    "small": {
        "backbone": _RESNET_18,
        "image_size": (272, 480),
        "hidden_channels": 64,
        "level_strides": (8,),
        "decoder_channels": (64, 128),
        "grid": {"anchor": "center"},
    },
    "base": {
        "backbone": _RESNET_50,
        "image_size": (448, 800),
        "level_strides": (8, 16, 32),
        "grid": {"anchor": "center"},
    },
    "base-600": {"backbone": _RESNET_50, "image_size": (600, 800), "level_strides": (8, 16, 32), "label_mode": "pon"},
    "dinov2-s": {
        "backbone": {"model_type": "dinov2", "hidden_size": 384, "num_attention_heads": 6, "patch_size": 14},
        "image_size": (266, 476),
        "level_strides": (14,),
        "grid": {"anchor": "center"},
    },
}
"""Sizes by name: `tiny` and `tiny-columns`, whose attention costs more a pixel, train on two cores in minutes."""


class FocusBEVConfig(PreTrainedConfig):
    """Everything that decides the shape of a network, and the protocol with which it was trained.

    Args:
        backbone: "tiny" (an own small one), or the options of a transformers backbone with its `model_type`.
        image_size: (height, width) in pixels of the input.
        hidden_channels: C, channels of image and ground features.
        level_strides: strides of the feature levels that the view transform reads, finest first; several levels share
            the depths: the finest serves the far ones.
        view_transform: "upright" (each cell reads the picture where its ground is seen and at several heights above),
            "column" (attention inside of image columns), "ipm" (flat ground, no parameters) or "mlp"; None takes
            "column" where the cycle runs, which needs columns, and "upright" elsewhere.
        num_layers: cross-attention layers of the column transform.
        num_heads: heads of each.
        upright_heights: m above each cell at which "upright" reads, besides the ground itself.
        use_cycle: whether the self-calibrated second pass runs.
        memory_length: past frames that are fused; 0 for none.
        use_pitch_head: whether the network estimates the pitch that the calibration does not tell.
        grid: options of `BEVGridConfig`: which cells the prediction has.
        feature_resolution: side of a cell of the ground features in m.
        depth_step: size of a depth bin of the column transform in m.
        decoder_channels: at the resolution of the features, and at half of it.
        decoder_blocks: residual blocks at each scale.
        camera_height: m above the ground where no `camera_to_ego` is given.
        classes: name of the list of classes.
        label_mode: "exact" or "pon": with which labels it is trained and may be judged.
        priors: shares of the classes for the last bias; None takes the published ones.
        trained_sequences: drives that it was trained with.
        column_chunk: columns at once; 0 takes all. Same results, less memory.
    """

    model_type = "focusbev"
    attribute_map: ClassVar[dict[str, str]] = {"hidden_size": "hidden_channels"}

    def __init__(
        self,
        backbone: str | dict[str, Any] = "tiny",
        image_size: tuple[int, int] = (128, 224),
        hidden_channels: int = 128,
        level_strides: tuple[int, ...] = (8,),
        view_transform: ViewTransform | None = None,
        num_layers: int = 2,
        num_heads: int = 4,
        upright_heights: tuple[float, ...] = (0.5, 1.0, 1.5, 2.5),
        use_cycle: bool = False,
        memory_length: int = 0,
        use_pitch_head: bool = False,
        grid: dict[str, Any] | None = None,
        feature_resolution: float = 0.5,
        depth_step: float = 1.0,
        decoder_channels: tuple[int, int] = (128, 256),
        decoder_blocks: int = 2,
        camera_height: float = 1.5,
        classes: str = "pon14",
        label_mode: str = "exact",
        priors: list[float] | None = None,
        trained_sequences: list[str] | None = None,
        column_chunk: int = 0,
        **kwargs: Any,
    ) -> None:
        names = find_classes(classes).names
        self.backbone = backbone
        self.image_size = (image_size[0], image_size[1])
        self.hidden_channels = hidden_channels
        self.level_strides = tuple(level_strides)
        self.view_transform = view_transform or ("column" if use_cycle else "upright")
        self.num_layers, self.num_heads = num_layers, num_heads
        self.upright_heights = tuple(upright_heights)
        self.use_cycle, self.memory_length, self.use_pitch_head = use_cycle, memory_length, use_pitch_head
        self.grid = dict(grid or {})
        self.feature_resolution, self.depth_step = feature_resolution, depth_step
        self.decoder_channels = (decoder_channels[0], decoder_channels[1])
        self.decoder_blocks = decoder_blocks
        self.camera_height = camera_height
        self.classes, self.label_mode = classes, label_mode
        self.priors = list(priors) if priors is not None else list(find_classes(classes).priors)
        self.trained_sequences = list(trained_sequences or [])
        self.column_chunk = column_chunk
        kwargs.setdefault("id2label", dict(enumerate(names)))
        kwargs.setdefault("label2id", {name: number for number, name in enumerate(names)})
        super().__init__(**kwargs)
        self._check()

    @property
    def bev_grid(self) -> BEVGridConfig:
        """Which cells the prediction has."""
        return BEVGridConfig.parse(self.grid)

    @property
    def feature_grid(self) -> BEVGridConfig:
        """Which cells the ground features have: the same ground, anchored in the middle of its cells."""
        return self.bev_grid.model_copy(update={"resolution": self.feature_resolution, "anchor": "center"})

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "FocusBEVConfig":
        """Return the options of a size, with changes.

        Raises:
            ConfigError: if there is no such size.
        """
        if name not in PRESETS:
            raise ConfigError(
                f"FocusBEVConfig.preset: name='{name}' is unknown; expected one of {', '.join(PRESETS)}. "
                f"{did_you_mean(name, PRESETS)}"
            )
        return cls(**{**PRESETS[name], **changes})

    def _check(self) -> None:
        def refuse(what: str, now: str) -> None:
            raise ConfigError(f"FocusBEVConfig: {what}. {now}")

        if self.view_transform not in get_args(ViewTransform):
            refuse(
                f"view_transform='{self.view_transform}' is unknown; expected column, upright, ipm or mlp",
                "Choose one.",
            )
        if self.hidden_channels % self.num_heads or self.hidden_channels % 8:
            refuse(
                f"hidden_channels={self.hidden_channels}, num_heads={self.num_heads} do not fit; expected a multiple "
                "of 8 and of the heads",
                "Choose other channels.",
            )
        if not self.upright_heights:
            refuse("upright_heights=() is empty; expected heights in m", "Name some, or use view_transform='ipm'.")
        if self.use_cycle and self.view_transform != "column":
            refuse(
                f"use_cycle=True with view_transform='{self.view_transform}' has no columns to go back to; expected "
                "'column'",
                "Use the column transform, or no cycle.",
            )
        if self.column_chunk and self.view_transform != "column":
            refuse(
                f"column_chunk={self.column_chunk} with view_transform='{self.view_transform}' has no columns; "
                "expected 'column'",
                "Leave column_chunk out, or use the column transform.",
            )
        bins = (self.bev_grid.z_max - self.bev_grid.z_min) / self.depth_step
        if abs(bins - round(bins)) > 1e-6 or bins < 2:
            refuse(
                f"depth_step={self.depth_step} makes {bins:g} bins; expected at least two whole ones between "
                f"{self.bev_grid.z_min:g} and {self.bev_grid.z_max:g} m",
                "Choose a divisor of the depth.",
            )
        if list(self.level_strides) != sorted(set(self.level_strides)) or not self.level_strides:
            refuse(f"level_strides={self.level_strides} are not ascending; expected such as (8, 16, 32)", "Sort them.")
        if len(self.priors) != len(find_classes(self.classes).names):
            refuse(
                f"priors has {len(self.priors)} numbers; expected {len(find_classes(self.classes).names)}, one a class",
                "Compute them with `fw bev labels`.",
            )

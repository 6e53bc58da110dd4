"""ACT: a chunk of actions from pictures and joints by a transformer; in training a second encoder sees the actions.

That second encoder squeezes the style of a demonstration into a latent vector z (a conditional variational
autoencoder); when the policy acts, z is its mean, zero. Options have the names of LeRobot's ACT, and the defaults of a
tiny one.
Source: Zhao et al., Learning fine-grained bimanual manipulation with low-cost hardware, arXiv 2304.13705.

Shapes: B frames, F features, K actions of a chunk, 6 joints, D width, S tokens, Z latent.
"""

from collections.abc import Mapping
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from featherweight.robot.kit import SERVOS
from featherweight.robot.learning.keypoints import KeypointStem
from featherweight.robot.learning.options import ACTShape
from featherweight.robot.learning.policy import Policy, PolicyConfig
from featherweight.robot.learning.transformer import DecoderLayer, EncoderLayer


class ACTConfig(ACTShape, PolicyConfig):
    """An ACT policy, complete."""

    kind: Literal["act"] = "act"
    """Action chunking with a transformer."""


class ACTPolicy(Policy):
    """The transformer; see the top of the file.

    Args:
        config: shape.
    """

    config: ACTConfig

    def __init__(self, config: ACTConfig) -> None:
        super().__init__()
        self.config, self.chunk = config, config.chunk_size
        self.ask_every, self.decay = config.n_action_steps, config.temporal_ensemble_coeff
        self.picture_size_px = (config.picture_height_px, config.picture_width_px)
        width = config.dim_model
        layer = (width, config.n_heads, config.dim_feedforward, config.dropout)
        self.stems = nn.ModuleList(KeypointStem(config.keypoints) for _ in config.cameras)
        self.camera_projs = nn.ModuleList(nn.Linear(2 * config.keypoints, width) for _ in config.cameras)
        self.state_proj, self.latent_proj = nn.Linear(len(config.features), width), nn.Linear(config.latent_dim, width)
        self.encoder = nn.ModuleList(EncoderLayer(*layer) for _ in range(config.n_encoder_layers))
        self.decoder = nn.ModuleList(DecoderLayer(*layer) for _ in range(config.n_decoder_layers))
        self.places = nn.Parameter(torch.randn(2 + len(config.cameras), width) * 0.02)
        self.queries = nn.Parameter(torch.randn(self.chunk, width))
        self.action_head = nn.Linear(width, SERVOS)
        if config.use_vae:
            self.vae_state_proj = nn.Linear(len(config.features), width)
            self.vae_action_proj = nn.Linear(SERVOS, width)
            self.vae_encoder = nn.ModuleList(EncoderLayer(*layer) for _ in range(config.n_vae_encoder_layers))
            self.vae_places = nn.Parameter(torch.randn(2 + self.chunk, width) * 0.02)
            self.vae_query = nn.Parameter(torch.randn(width) * 0.02)
            self.vae_head = nn.Linear(width, 2 * config.latent_dim)
        self._add_scales()

    def encode_style(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return mean and logarithm of the variance, (B, Z) each, of the latent vector of demonstrated chunks.

        Args:
            batch: "features" (B, F), "targets" (B, K, 6) degrees, "weights" (B, K), 0 beyond the episode.
        """
        actions = self.normal_targets(batch["targets"]) * batch["weights"][..., None]
        state = self.vae_state_proj(self.normal_features(batch["features"]))
        query = self.vae_query.expand(len(state), 1, -1)
        x = torch.cat([query, state[:, None], self.vae_action_proj(actions)], dim=1)
        for layer in self.vae_encoder:
            x = layer(x, self.vae_places)
        mean, log_variance = self.vae_head(x[:, 0]).float().chunk(2, dim=-1)
        return mean, log_variance

    def normal_chunks(self, batch: Mapping[str, Tensor], latent: Tensor | None = None) -> Tensor:
        """Return (B, K, 6) predictions in the units of the network's output.

        Args:
            batch: "features" (B, F), and "picture.<camera>" (B, 3, H, W) bytes for each camera.
            latent: (B, Z); None for zero.
        """
        features = batch["features"]
        if latent is None:
            latent = features.new_zeros(len(features), self.config.latent_dim)
        tokens = [self.latent_proj(latent), self.state_proj(self.normal_features(features))]
        for name, stem, proj in zip(self.config.cameras, self.stems, self.camera_projs, strict=True):
            tokens.append(proj(stem(batch[f"picture.{name}"])))
        memory = torch.stack(tokens, dim=1)
        for layer in self.encoder:
            memory = layer(memory, self.places)
        x = torch.zeros_like(self.queries).expand(len(features), -1, -1)
        for layer in self.decoder:
            x = layer(x, self.queries, memory, self.places)
        result: Tensor = self.action_head(x).float()
        return result

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return (B, K, 6) degrees relative to the reported angles; see `normal_chunks`."""
        return self.to_degrees(self.normal_chunks(batch))

    def predict(self, batch: Mapping[str, Tensor]) -> Tensor:
        """See `Policy`."""
        result: Tensor = self(batch)
        return result

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """See `Policy`."""
        return cls(ACTConfig.parse(options, where="policy.json"))

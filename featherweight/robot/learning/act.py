"""ACT: a chunk of actions from pictures and joints by a transformer; in training a second encoder sees the actions.

That second encoder squeezes the style of a demonstration into a latent vector z (a conditional variational
autoencoder); when the policy acts, z is its mean, zero. Options have the names of LeRobot's ACT, and the defaults of a
tiny one.
Source: Zhao et al., Learning fine-grained bimanual manipulation with low-cost hardware, arXiv 2304.13705.

Shapes: B frames, F features, K actions of a chunk, 6 joints, D width, Z latent, 4 places.
"""

from collections.abc import Mapping
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from featherweight.robot.kit import SERVOS
from featherweight.robot.learning.eyes import SCENE_FEATURES, SceneHead, scene_features
from featherweight.robot.learning.keypoints import KeypointStem
from featherweight.robot.learning.options import ACTShape
from featherweight.robot.learning.policy import Policy, PolicyConfig
from featherweight.robot.learning.transformer import DecoderLayer, EncoderLayer


class ACTConfig(ACTShape, PolicyConfig):
    """An ACT policy, complete."""

    kind: Literal["act"] = "act"
    """Action chunking with a transformer."""
    sees_places: bool = False
    """Whether a head says from the pictures where cube and bin are, which the policy then sees beside them."""

    @property
    def feature_count(self) -> int:
        """Numbers that the transformer sees of arm and scene."""
        return len(self.features) + SCENE_FEATURES * self.sees_places


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
        if config.sees_places:
            self.scene_head = SceneHead(2 * config.keypoints * len(config.cameras))
        self.state_proj = nn.Linear(config.feature_count, width)
        self.latent_proj = nn.Linear(config.latent_dim, width)
        self.encoder = nn.ModuleList(EncoderLayer(*layer) for _ in range(config.n_encoder_layers))
        self.decoder = nn.ModuleList(DecoderLayer(*layer) for _ in range(config.n_decoder_layers))
        self.places = nn.Parameter(torch.randn(2 + len(config.cameras), width) * 0.02)
        self.queries = nn.Parameter(torch.randn(self.chunk, width))
        self.action_head = nn.Linear(width, SERVOS)
        if config.use_vae:
            self.vae_state_proj = nn.Linear(config.feature_count, width)
            self.vae_action_proj = nn.Linear(SERVOS, width)
            self.vae_encoder = nn.ModuleList(EncoderLayer(*layer) for _ in range(config.n_vae_encoder_layers))
            self.vae_places = nn.Parameter(torch.randn(2 + self.chunk, width) * 0.02)
            self.vae_query = nn.Parameter(torch.randn(width) * 0.02)
            self.vae_head = nn.Linear(width, 2 * config.latent_dim)
        self._add_scales(config.feature_count - len(config.features))

    def fit_scales(self, rows: Mapping[str, Tensor]) -> None:
        """See `Policy`; with places, they are told by "places" (n, 4)."""
        if self.config.sees_places:
            self.scene_head.fit_scales(rows["places"])
            rows = {
                **rows,
                "features": torch.cat([rows["features"], scene_features(rows["features"], rows["places"])], -1),
            }
        super().fit_scales(rows)

    def look(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, list[Tensor], Tensor | None]:
        """Return (B, F) features in deviations, a (B, D) token for each camera, and (B, 4) places or None.

        While the policy learns where things are, the transformer is told the true places: with its own, which are
        wrong at first, it would learn to follow the joints. Later it has its own.

        Args:
            batch: "features", a "picture.<camera>" for each camera, and in training "places" (B, 4), if it sees them.
        """
        found = [stem(batch[f"picture.{name}"]) for name, stem in zip(self.config.cameras, self.stems, strict=True)]
        tokens = [proj(one) for proj, one in zip(self.camera_projs, found, strict=True)]
        features, places = batch["features"], None
        if self.config.sees_places:
            places = self.scene_head(torch.cat(found, dim=-1))
            told = batch["places"] if self.training else places
            features = torch.cat([features, scene_features(features, told)], dim=-1)
        return self.normal_features(features), tokens, places

    def encode_style(self, batch: Mapping[str, Tensor], features: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and logarithm of the variance, (B, Z) each, of the latent vector of demonstrated chunks.

        Args:
            batch: "targets" (B, K, 6) degrees, "weights" (B, K), 0 beyond the episode.
            features: (B, F) in deviations, of `look`.
        """
        actions = self.normal_targets(batch["targets"]) * batch["weights"][..., None]
        state = self.vae_state_proj(features)
        query = self.vae_query.expand(len(state), 1, -1)
        x = torch.cat([query, state[:, None], self.vae_action_proj(actions)], dim=1)
        for layer in self.vae_encoder:
            x = layer(x, self.vae_places)
        mean, log_variance = self.vae_head(x[:, 0]).float().chunk(2, dim=-1)
        return mean, log_variance

    def normal_chunks(self, features: Tensor, camera_tokens: list[Tensor], latent: Tensor | None = None) -> Tensor:
        """Return (B, K, 6) predictions in the units of the network's output.

        Args:
            features: (B, F) in deviations.
            camera_tokens: (B, D) each; both of `look`.
            latent: (B, Z); None for zero.
        """
        if latent is None:
            latent = features.new_zeros(len(features), self.config.latent_dim)
        memory = torch.stack([self.latent_proj(latent), self.state_proj(features), *camera_tokens], dim=1)
        for layer in self.encoder:
            memory = layer(memory, self.places)
        x = torch.zeros_like(self.queries).expand(len(features), -1, -1)
        for layer in self.decoder:
            x = layer(x, self.queries, memory, self.places)
        result: Tensor = self.action_head(x).float()
        return result

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return (B, K, 6) degrees relative to the reported angles; see `look`."""
        features, tokens, _ = self.look(batch)
        return self.to_degrees(self.normal_chunks(features, tokens))

    def predict(self, batch: Mapping[str, Tensor]) -> Tensor:
        """See `Policy`."""
        result: Tensor = self(batch)
        return result

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """See `Policy`."""
        return cls(ACTConfig.parse(options, where="policy.json"))

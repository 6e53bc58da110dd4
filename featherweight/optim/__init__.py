"""Optimizers whose state may live in a subspace of the gradient or in few bits.

The presets choose policies of one core, `LowRankOptimizer`; `param_groups` says which weights are projected.
"""

from featherweight.optim.backward.layerwise import LayerwiseHandle, layerwise
from featherweight.optim.backward.updates import Layerwise
from featherweight.optim.build import OptimizerConfig, build_optimizer, optimizers, parse_optimizer
from featherweight.optim.exchange import adopt_new_rows
from featherweight.optim.low_rank import LowRankOptimizer
from featherweight.optim.own import own_optimizer
from featherweight.optim.param_groups import param_groups, tensor_param_groups
from featherweight.optim.policies.lazy import LazyRefresh
from featherweight.optim.presets.adamw import AdamW
from featherweight.optim.presets.apollo import Apollo, ApolloMini
from featherweight.optim.presets.fira import Fira
from featherweight.optim.presets.galore import GaLoreAdamW
from featherweight.optim.presets.galore_adafactor import GaLoreAdafactor
from featherweight.optim.presets.gum import GUM
from featherweight.optim.presets.ldadam import LDAdamW
from featherweight.optim.presets.q_galore import QGaLoreAdamW
from featherweight.optim.presets.scale import Scale, scale_param_groups
from featherweight.optim.presets.tensor_galore import TensorGaLoreAdamW, TensorGRaD

__all__ = [
    "GUM",
    "AdamW",
    "Apollo",
    "ApolloMini",
    "Fira",
    "GaLoreAdafactor",
    "GaLoreAdamW",
    "LDAdamW",
    "Layerwise",
    "LayerwiseHandle",
    "LazyRefresh",
    "LowRankOptimizer",
    "OptimizerConfig",
    "QGaLoreAdamW",
    "Scale",
    "TensorGRaD",
    "TensorGaLoreAdamW",
    "adopt_new_rows",
    "build_optimizer",
    "layerwise",
    "optimizers",
    "own_optimizer",
    "param_groups",
    "parse_optimizer",
    "scale_param_groups",
    "tensor_param_groups",
]

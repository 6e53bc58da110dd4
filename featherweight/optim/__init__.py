"""Optimizers whose state may live in a subspace of the gradient or in few bits.

The presets choose policies of one core, `LowRankOptimizer`; `param_groups` says which weights are projected. Names load
on first use: the options of a recipe are judged before torch is imported.
"""

from typing import TYPE_CHECKING, Any

from featherweight.lazy_names import load_name

if TYPE_CHECKING:
    from featherweight.optim.backward.layerwise import LayerwiseHandle, layerwise
    from featherweight.optim.backward.updates import Layerwise
    from featherweight.optim.build import build_optimizer
    from featherweight.optim.exchange import adopt_new_rows
    from featherweight.optim.groups import param_groups, tensor_param_groups
    from featherweight.optim.low_rank import LowRankOptimizer
    from featherweight.optim.named import OptimizerConfig, optimizers, parse_optimizer
    from featherweight.optim.own import own_optimizer
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

_LAZY = {
    "AdamW": "featherweight.optim.presets.adamw",
    "Apollo": "featherweight.optim.presets.apollo",
    "ApolloMini": "featherweight.optim.presets.apollo",
    "Fira": "featherweight.optim.presets.fira",
    "GUM": "featherweight.optim.presets.gum",
    "GaLoreAdafactor": "featherweight.optim.presets.galore_adafactor",
    "GaLoreAdamW": "featherweight.optim.presets.galore",
    "LDAdamW": "featherweight.optim.presets.ldadam",
    "Layerwise": "featherweight.optim.backward.updates",
    "LayerwiseHandle": "featherweight.optim.backward.layerwise",
    "LazyRefresh": "featherweight.optim.policies.lazy",
    "LowRankOptimizer": "featherweight.optim.low_rank",
    "OptimizerConfig": "featherweight.optim.named",
    "QGaLoreAdamW": "featherweight.optim.presets.q_galore",
    "Scale": "featherweight.optim.presets.scale",
    "TensorGRaD": "featherweight.optim.presets.tensor_galore",
    "TensorGaLoreAdamW": "featherweight.optim.presets.tensor_galore",
    "adopt_new_rows": "featherweight.optim.exchange",
    "build_optimizer": "featherweight.optim.build",
    "layerwise": "featherweight.optim.backward.layerwise",
    "optimizers": "featherweight.optim.named",
    "own_optimizer": "featherweight.optim.own",
    "param_groups": "featherweight.optim.groups",
    "parse_optimizer": "featherweight.optim.named",
    "scale_param_groups": "featherweight.optim.presets.scale",
    "tensor_param_groups": "featherweight.optim.groups",
}

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


def __getattr__(name: str) -> Any:
    return load_name(__name__, _LAZY, name)


def __dir__() -> list[str]:
    return sorted(__all__)

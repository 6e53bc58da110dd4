"""featherweight: train, fine-tune and measure large models on hardware that you can afford.

Public names load on first use (PEP 562), so that `import featherweight` stays fast and imports no torch.
"""

import importlib
from typing import Any

from featherweight.import_hook import import_after, without_kernel_advice

__version__ = "0.1.0"

# Public name -> module that defines it. Sub-packages map to themselves.
_LAZY = {
    "errors": "featherweight.errors",
    "kernels": "featherweight.kernels",
    "distributed": "featherweight.distributed",
    "memory": "featherweight.memory",
    "optim": "featherweight.optim",
    "training": "featherweight.training",
    "text": "featherweight.text",
    "pde": "featherweight.pde",
    "bev": "featherweight.bev",
    "robot": "featherweight.robot",
    "measure_memory": "featherweight.memory.measure",
    "plan": "featherweight.planner.plan",
    "solve": "featherweight.planner.solve",
    "why": "featherweight.planner.advice",
    "estimate_memory": "featherweight.training.estimate",
    "train": "featherweight.training.run",
    "train_planned": "featherweight.planner.train",
    "compare": "featherweight.training.compare",
    "sweep": "featherweight.training.sweep",
    "linear_cross_entropy": "featherweight.nn.linear_cross_entropy",
    "linear_logprobs": "featherweight.nn.linear_cross_entropy",
    "LinearCrossEntropyLoss": "featherweight.nn.linear_cross_entropy_loss",
    "chunk": "featherweight.nn.chunked",
    "chunked_mlp": "featherweight.nn.chunked_mlp",
    "methods": "featherweight.methods",
    "apply": "featherweight.methods.method",
    "remove": "featherweight.methods.method",
    "apply_to_new_models": "featherweight.methods.construction",
    "CoreGradient": "featherweight.methods.core_gradient",
    "HostWeights": "featherweight.methods.host_weights",
    "MsT": "featherweight.methods.mst",
    "s2ft": "featherweight.methods.s2ft",
    "S2FTConfig": "featherweight.methods.s2ft",
    "Base4bit": "featherweight.methods.base4bit",
    "Int8": "featherweight.methods.int8",
    "LoRA": "featherweight.methods.lora",
    "WeLore": "featherweight.methods.welore",
    "InRank": "featherweight.methods.inrank",
    "compress": "featherweight.text.compress",
    "load_low_rank": "featherweight.methods.low_rank_model",
    "merge_low_rank": "featherweight.methods.low_rank_model",
    "guard": "featherweight.guard",
    "PrefixGuard": "featherweight.guard.guard",
    "GuardedModel": "featherweight.guard.guarded_model",
    "TokenStats": "featherweight.nn.cross_entropy",
}

__all__ = ["__version__", *_LAZY]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'featherweight' has no attribute '{name}'")
    module = importlib.import_module(_LAZY[name])
    value = module if _LAZY[name].endswith((f"featherweight.{name}", f"methods.{name}")) else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


# With PEFT, adapters of S2FT open like any other.
import_after("peft", "featherweight.methods.s2ft", before=without_kernel_advice)

"""featherweight: train, fine-tune and measure large models on hardware that you can afford.

Public names load on first use (PEP 562), so that `import featherweight` stays fast and imports no torch.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

# Public name -> module that defines it. Sub-packages map to themselves.
_LAZY = {
    "errors": "featherweight.errors",
    "memory": "featherweight.memory",
    "optim": "featherweight.optim",
    "training": "featherweight.training",
    "text": "featherweight.text",
    "measure_memory": "featherweight.memory.measure",
    "train": "featherweight.training.run",
    "compare": "featherweight.training.compare",
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
    "MsT": "featherweight.methods.mst",
    "Int8": "featherweight.methods.int8",
    "TokenStats": "featherweight.nn.cross_entropy",
}

__all__ = ["__version__", *_LAZY]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'featherweight' has no attribute '{name}'")
    module = importlib.import_module(_LAZY[name])
    value = module if _LAZY[name] == f"featherweight.{name}" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

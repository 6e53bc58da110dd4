"""Models: where they come from, their tokenizers, shapes and facts, and how they are written.

One file per concept: `sources` (what names a model), `place` and `gguf` (where that leads), `configuration`, `load`,
`save`, `facts`, `shapes`, `tokenizer`, `hub`, `generation` and `adapters` (an adapter for each prompt).
"""

from typing import Any

from featherweight.lazy_names import load_name

_LAZY = {
    "SHAPES": "featherweight.models.shapes",
    "ModelFacts": "featherweight.models.facts",
    "ModelSource": "featherweight.models.sources",
    "Tokenizer": "featherweight.models.tokenizer",
    "byte_tokenizer": "featherweight.models.tokenizer",
    "has_random_weights": "featherweight.models.sources",
    "begins_pretrained": "featherweight.models.weights",
    "check_weights": "featherweight.models.weights",
    "load_model": "featherweight.models.load",
    "load_tokenizer": "featherweight.models.load",
    "model_configuration": "featherweight.models.facts",
    "model_facts": "featherweight.models.facts",
    "save_model_folder": "featherweight.models.save",
}

__all__ = [*_LAZY]


def __getattr__(name: str) -> Any:
    return load_name(__name__, _LAZY, name)

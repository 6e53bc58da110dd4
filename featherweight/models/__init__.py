"""Models: where they come from, their tokenizers, shapes and facts, and how they are written.

One file per concept: `sources` (what names a model), `place` and `gguf` (where that leads), `configuration`, `load`,
`save`, `facts`, `shapes`, `tokenizer`, `hub`.
"""

from featherweight.models.facts import ModelFacts, model_configuration, model_facts
from featherweight.models.load import load_model, load_tokenizer
from featherweight.models.save import save_model_folder
from featherweight.models.shapes import SHAPES
from featherweight.models.sources import ModelSource, has_random_weights
from featherweight.models.tokenizer import Tokenizer, byte_tokenizer

__all__ = [
    "SHAPES",
    "ModelFacts",
    "ModelSource",
    "Tokenizer",
    "byte_tokenizer",
    "has_random_weights",
    "load_model",
    "load_tokenizer",
    "model_configuration",
    "model_facts",
    "save_model_folder",
]

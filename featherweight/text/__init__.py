"""Text: language modelling, conversations and instructions with any Hugging Face model on any text."""

from typing import Any

from featherweight.lazy_names import load_name

_LAZY = {
    "ChatConfig": "featherweight.text.options",
    "ChatTask": "featherweight.text.chat_task",
    "ModelFacts": "featherweight.models.facts",
    "TextConfig": "featherweight.text.options",
    "TextTask": "featherweight.text.task",
    "byte_tokenizer": "featherweight.models.tokenizer",
    "load_documents": "featherweight.text.corpus",
    "load_model": "featherweight.models.load",
    "load_tokenizer": "featherweight.models.load",
    "model_facts": "featherweight.models.facts",
    "pack": "featherweight.text.packing",
    "save_model_folder": "featherweight.models.save",
    "split_documents": "featherweight.text.corpus",
}

__all__ = [*_LAZY]


def __getattr__(name: str) -> Any:
    return load_name(__name__, _LAZY, name)

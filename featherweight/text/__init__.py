"""Text: causal language modelling with any Hugging Face model on any text."""

from featherweight.models import ModelFacts, load_model, load_tokenizer, model_facts, save_model_folder
from featherweight.models.tokenizer import byte_tokenizer
from featherweight.text.corpus import load_documents, split_documents
from featherweight.text.packing import pack
from featherweight.text.task import TextConfig, TextTask

__all__ = [
    "ModelFacts",
    "TextConfig",
    "TextTask",
    "byte_tokenizer",
    "load_documents",
    "load_model",
    "load_tokenizer",
    "model_facts",
    "pack",
    "save_model_folder",
    "split_documents",
]

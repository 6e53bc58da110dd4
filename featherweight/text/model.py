"""The names of `featherweight.models` under the path that they had first, for programs that were written then."""

from featherweight.models.facts import ModelFacts, model_facts
from featherweight.models.load import load_model, load_tokenizer
from featherweight.models.save import save_model_folder

__all__ = ["ModelFacts", "load_model", "load_tokenizer", "model_facts", "save_model_folder"]

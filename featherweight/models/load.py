"""Causal language models and their tokenizers, from wherever a user has them (`featherweight.models.sources`)."""

from typing import cast

import torch
from torch import nn

from featherweight.methods.low_rank_model import load_low_rank
from featherweight.methods.sealed_folder import RECORD
from featherweight.models.configuration import read_configuration
from featherweight.models.gguf import dequantized
from featherweight.models.place import Place, check_complete, explained
from featherweight.models.sources import ModelSource, find_place
from featherweight.models.tokenizer import Tokenizer, byte_tokenizer


def load_model(
    source: ModelSource,
    *,
    dtype: torch.dtype = torch.float32,
    tokenizer: Tokenizer | None = None,
    seed: int = 0,
    random_weights: bool = False,
) -> nn.Module:
    """Return a causal language model on the CPU, in training mode.

    Args:
        source: which model; see `featherweight.models.sources`.
        dtype: of the weights.
        tokenizer: fills vocab_size and the special tokens that a configuration leaves open; default: the byte
            tokenizer.
        seed: of random weights; those of a pretrained model do not depend on it. The global random state is left as it
            is.
        random_weights: give a pretrained model new weights instead of its own.
    Returns:
        A `transformers.PreTrainedModel`; `model(input_ids).logits` is (B, L, V).
    Raises:
        ConfigError: if the source does not exist, is damaged, or holds no complete causal language model.
        MissingExtraError: if a package is missing that the source needs.
    Cost: `smollm2` takes about 15 s the first time, when its GGUF file is converted into the cache folder; then 1 s.
    """
    from transformers import AutoModelForCausalLM

    place = find_place(source)
    with torch.random.fork_rng(devices=[]), explained(place):
        torch.manual_seed(seed)
        if place.settings is not None or random_weights:
            model = AutoModelForCausalLM.from_config(read_configuration(place, tokenizer), dtype=dtype)
        elif place.gguf_file:
            model = dequantized(place, dtype)
        elif _is_low_rank(place):
            model = load_low_rank(str(place.path), dtype=dtype)
        else:
            model, loading = AutoModelForCausalLM.from_pretrained(
                **place.arguments, dtype=dtype, output_loading_info=True
            )
            check_complete(place, loading["missing_keys"])
    return cast(nn.Module, model.train())


def load_tokenizer(source: ModelSource) -> Tokenizer:
    """Return the tokenizer of a model; a configuration has the byte tokenizer, and so has the source `bytes`.

    Args:
        source: which model; see `featherweight.models.sources`.
    Raises:
        ConfigError: if the source does not exist or holds no tokenizer.
        MissingExtraError: if a package is missing that the source needs.
    """
    from transformers import AutoTokenizer

    if source == "bytes":
        return byte_tokenizer()
    place = find_place(source)
    if place.settings is not None:
        return byte_tokenizer()
    with explained(place):
        tokenizer = AutoTokenizer.from_pretrained(**place.arguments)
    if tokenizer.pad_token_id is None:
        # Batched generation needs some pad token; which one does not matter, because it is masked.
        tokenizer.pad_token = tokenizer.eos_token
    return cast(Tokenizer, tokenizer)


def _is_low_rank(place: Place) -> bool:
    return getattr(read_configuration(place, None), RECORD, None) is not None

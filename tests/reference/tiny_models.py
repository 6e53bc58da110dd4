"""Tiny decoders with random weights, one of each kind of cache that transformers knows, and prompts for them."""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

VOCABULARY = 64
WINDOW = 6

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    # Larger than usual, so that the likeliest token changes from place to place.
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    # One key head for all query heads, and the embedding as head; the llama above has two of four.
    "multi_query": {"model_type": "llama", "num_key_value_heads": 1, "tie_word_embeddings": True},
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "mistral": {"model_type": "mistral", "sliding_window": WINDOW},
    "gemma2": {"model_type": "gemma2", "sliding_window": WINDOW, "head_dim": 8, "query_pre_attn_scalar": 8},
    "qwen3_next": {
        "model_type": "qwen3_next",
        "head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "mlp_only_layers": [0, 1, 2, 3],
    },
    "mamba2": {"model_type": "mamba2", "num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1, "chunk_size": 4},
}
CROPPED = ("llama", "gpt2", "mistral", "gemma2")
"""Kinds whose cache can go back."""
RECURRENT = ("qwen3_next", "mamba2")
"""Kinds whose cache cannot."""


@cache
def tiny_model(name: str) -> nn.Module:
    """Return a decoder in float32 and evaluation mode."""
    return new_model(SETTINGS[name])


def new_model(settings: dict[str, Any]) -> nn.Module:
    """Return a decoder of its own by its settings, `model_type` among them, in float32 and evaluation mode."""
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = dict(settings)
    kind = settings.pop("model_type")
    known = AutoConfig.for_model(kind).to_dict()
    common = {key: value for key, value in _COMMON.items() if key in known or key.endswith("token_id")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, **{**common, **settings})
        return AutoModelForCausalLM.from_config(config).eval()


def prompt(rows: int = 1, length: int = 11, seed: int = 0) -> Tensor:
    """Return (rows, length) token ids."""
    return torch.randint(1, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


SMALL_LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
"""A source of `featherweight.models` that loads in no time; its vocabulary is that of the byte tokenizer."""


def same_weights(model: nn.Module, other: nn.Module) -> bool:
    """Tell whether two models have equal tensors under equal names."""
    weights, others = model.state_dict(), other.state_dict()
    return weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)

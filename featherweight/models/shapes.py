"""Shapes of well-known decoders by name: a new model with random weights, to plan memory with or to train from scratch.

Each is a mapping of settings as `featherweight.models.load_model` takes it: `model_type` and what differs from the
defaults of transformers in the published configuration. Special tokens are left open, because they belong to the
tokenizer. No weights come with a name, and no name is one of the hub.
Sources: the config.json of the base model on the Hugging Face hub (Qwen3, Phi-3: of the chat model); llama-60m to
llama-7b: arXiv 2403.03507, table 5, and the configurations of its code, which have a head of their own.
"""

from typing import Any

BYTE_LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    # As in the Llama configurations of arXiv 2403.03507: the context, this eps, and a head of its own.
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
"""Configuration behind the names `tiny` and `byte-llama`."""


def _llama(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int | None = None) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads or heads,
        "tie_word_embeddings": False,
    }


def _rope(theta: float) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta}}


_GALORE = {"vocab_size": 32000, "max_position_embeddings": 1024, "rms_norm_eps": 1e-6, **_rope(1e4)}
_LLAMA_2 = {"vocab_size": 32000, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, **_rope(1e4)}
_LLAMA_3 = {"vocab_size": 128256, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, **_rope(5e5)}
_LLAMA_3_2 = {
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
_SMOLLM2 = {"vocab_size": 49152, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "tie_word_embeddings": True}
_QWEN2_5 = {
    "model_type": "qwen2",
    "vocab_size": 151936,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    **_rope(1e6),
}
_QWEN3 = {
    "model_type": "qwen3",
    "vocab_size": 151936,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    **_rope(1e6),
}


def _gpt2(hidden: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "gpt2",
        "n_embd": hidden,
        "n_layer": layers,
        "n_head": heads,
        "n_positions": 1024,
        "vocab_size": 50257,
        "tie_word_embeddings": True,
    }


SHAPES: dict[str, dict[str, Any]] = {
    "llama-60m": _llama(512, 1376, 8, 8) | _GALORE,
    "llama-130m": _llama(768, 2048, 12, 12) | _GALORE,
    "llama-350m": _llama(1024, 2736, 24, 16) | _GALORE,
    "llama-1b": _llama(2048, 5461, 24, 32) | _GALORE,
    "llama-7b": _llama(4096, 11008, 32, 32) | _GALORE | {"max_position_embeddings": 2048},
    "llama-2-7b": _llama(4096, 11008, 32, 32) | _LLAMA_2,
    "llama-2-13b": _llama(5120, 13824, 40, 40) | _LLAMA_2,
    "llama-2-70b": _llama(8192, 28672, 80, 64, 8) | _LLAMA_2,
    "llama-3-8b": _llama(4096, 14336, 32, 32, 8) | _LLAMA_3,
    "llama-3-70b": _llama(8192, 28672, 80, 64, 8) | _LLAMA_3,
    "llama-3.2-1b": _llama(2048, 8192, 16, 32, 8) | _LLAMA_3_2 | {"head_dim": 64},
    "llama-3.2-3b": _llama(3072, 8192, 28, 24, 8) | _LLAMA_3_2 | {"head_dim": 128},
    "smollm2-135m": _llama(576, 1536, 30, 9, 3) | _SMOLLM2 | _rope(1e5) | {"initializer_range": 1 / 24},
    "smollm2-360m": _llama(960, 2560, 32, 15, 5) | _SMOLLM2 | _rope(1e5),
    "smollm2-1.7b": _llama(2048, 8192, 24, 32) | _SMOLLM2 | _rope(1.3e5),
    "qwen2.5-0.5b": _llama(896, 4864, 24, 14, 2) | _QWEN2_5 | {"max_position_embeddings": 32768},
    "qwen2.5-1.5b": _llama(1536, 8960, 28, 12, 2) | _QWEN2_5 | {"max_position_embeddings": 131072},
    "qwen2.5-3b": _llama(2048, 11008, 36, 16, 2) | _QWEN2_5 | {"max_position_embeddings": 32768},
    "qwen2.5-7b": _llama(3584, 18944, 28, 28, 4)
    | _QWEN2_5
    | {"vocab_size": 152064, "max_position_embeddings": 131072, "tie_word_embeddings": False},
    "qwen3-0.6b": _llama(1024, 3072, 28, 16, 8) | _QWEN3,
    "qwen3-1.7b": _llama(2048, 6144, 28, 16, 8) | _QWEN3,
    "qwen3-4b": _llama(2560, 9728, 36, 32, 8) | _QWEN3,
    "qwen3-8b": _llama(4096, 12288, 36, 32, 8) | _QWEN3 | {"tie_word_embeddings": False},
    "mistral-7b": _llama(4096, 14336, 32, 32, 8)
    | {"model_type": "mistral", "vocab_size": 32000, "max_position_embeddings": 32768, "sliding_window": 4096}
    | {"rms_norm_eps": 1e-5, **_rope(1e4)},
    "gemma-2-2b": _llama(2304, 9216, 26, 8, 4)
    | {"model_type": "gemma2", "vocab_size": 256000, "max_position_embeddings": 8192, "sliding_window": 4096}
    | {"head_dim": 256, "query_pre_attn_scalar": 256, "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6}
    | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "tie_word_embeddings": True, **_rope(1e4)},
    "phi-3-mini": _llama(3072, 8192, 32, 32)
    | {"model_type": "phi3", "vocab_size": 32064, "max_position_embeddings": 4096, "sliding_window": 2047}
    | {"original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5, **_rope(1e4)},
    "gpt2-124m": _gpt2(768, 12, 12),
    "gpt2-355m": _gpt2(1024, 24, 16),
    "gpt2-774m": _gpt2(1280, 36, 20),
    "gpt2-1558m": _gpt2(1600, 48, 25),
}
"""Settings by name, in small letters; never changed in place."""

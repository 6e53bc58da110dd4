"""Small decoders, trained for a step on real or simulated tensors."""

import torch
from torch.nn import functional as F

from featherweight.memory.simulate import simulation
from featherweight.memory.tracker import StorageTracker
from featherweight.simulated import SimulatedDevice

CPU, CUDA = SimulatedDevice("cpu"), SimulatedDevice("cuda")


def attention_bytes(query_heads, key_heads, length, dtype, *, device=CUDA, mask=False, cost=None):
    """Return bytes that forward keeps, and what backward has besides them at its peak; B = 2, D = 64."""
    with simulation(device, cost):
        query, key, value = (
            torch.empty(2, heads, length, 64, dtype=dtype, requires_grad=True)
            for heads in (query_heads, key_heads, key_heads)
        )
        bias = torch.zeros(2, 1, length, length, dtype=dtype) if mask else None
        upstream = torch.empty(2, query_heads, length, 64, dtype=dtype)
        with StorageTracker() as tracker:
            output = F.scaled_dot_product_attention(
                query, key, value, attn_mask=bias, is_causal=not mask, enable_gqa=query_heads != key_heads
            )
            kept = tracker.live_bytes
            output.backward(upstream)
            assert query.grad.shape == query.shape and value.grad.shape == value.shape
            return kept, tracker.peak_bytes - kept


SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 512}


DECODERS = {
    "llama": {"num_key_value_heads": 2, "intermediate_size": 176},
    "gpt2": {"n_positions": 128, "bos_token_id": 0, "eos_token_id": 0},
    "qwen3": {"num_key_value_heads": 2, "intermediate_size": 176, "head_dim": 16},
    "mistral": {"num_key_value_heads": 2, "intermediate_size": 176},
    "opt": {"ffn_dim": 256, "word_embed_proj_dim": 64},
}


def decoder(model_type, **changes):
    from transformers import AutoConfig, AutoModelForCausalLM

    options = {**SIZES, **DECODERS[model_type], "max_position_embeddings": 128, **changes}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **options)).train()


def train_decoder(model, optimizer, token_ids):
    model(input_ids=token_ids, labels=token_ids, use_cache=False).loss.backward()
    optimizer.step()
    optimizer.zero_grad()

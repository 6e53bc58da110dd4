"""The memory of a 7B model from its configuration: bytes by formula, on the meta device."""

import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import featherweight as fw
from featherweight.optim import AdamW, GaLoreAdamW, QGaLoreAdamW, layerwise, param_groups
from featherweight.training.footprint import predict_bytes

HIDDEN, FFN, LAYERS, VOCAB = 4096, 11008, 32, 32000
MATRICES = [(HIDDEN, HIDDEN)] * 4 + [(FFN, HIDDEN)] * 2 + [(HIDDEN, FFN)]
LINEAR = LAYERS * sum(rows * columns for rows, columns in MATRICES)
EMBEDDING, NORMS = VOCAB * HIDDEN, (2 * LAYERS + 1) * HIDDEN
TENSORS = LAYERS * 9 + 3


def build():
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=FFN,
        num_hidden_layers=LAYERS,
        num_attention_heads=32,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        return LlamaForCausalLM(config).to(torch.bfloat16)


def blockwise(numel, bits):
    """Bytes of moments of one tensor: codes, and one float32 scale for 256 (128) of them."""
    if numel < 4096:
        return 4 * numel
    return numel * bits // 8 + 4 * math.ceil(numel / (256 if bits == 8 else 128)) if bits < 16 else numel * bits // 8


def dense_bytes(bits):
    """Bytes of the state of everything outside the layers' matrices."""
    vectors = 2 * LAYERS + 1
    return 2 * (2 * blockwise(EMBEDDING, bits) + vectors * blockwise(HIDDEN, bits)) + 8 * (vectors + 2)


def low_rank_bytes(rank, moment_bits, basis_bits, *, reverse=False, lazy=False):
    total = dense_bytes(moment_bits)
    for rows, columns in MATRICES * LAYERS:
        small, large = min(rows, columns), max(rows, columns)
        basis, core = (large * rank, rank * small) if reverse else (small * rank, rank * large)
        total += 2 * blockwise(core, moment_bits) + 8 * 5 + (8 * 2 + 4 * 5 if lazy else 0)
        total += basis // 2 + 5 * math.ceil(basis / 256) if basis_bits == 4 else basis * basis_bits // 8
    return total


def int8_bytes(numel, tensors):
    return numel + 4 * numel // 256 + 2 * tensors  # codes, scales, one element of each handle


BF16 = 2 * (LINEAR + 2 * EMBEDDING + NORMS)
INT8_LINEAR = int8_bytes(LINEAR, 7 * LAYERS) + 2 * (2 * EMBEDDING + NORMS)
INT8_ALL = int8_bytes(LINEAR + 2 * EMBEDDING, 7 * LAYERS + 2) + 2 * NORMS
GALORE = {"state_bits": 8, "basis_bits": 16}
ROWS = {
    # name: (int8, optimizer, options, weights, state, GB of both and of the gradients as published tables print them)
    "AdamW": (None, AdamW, {"state_bits": 16}, BF16, dense_bytes(16) + 4 * LINEAR + 8 * 7 * LAYERS, (13.48, 26.95)),
    "AdamW 8-bit": (
        None,
        AdamW,
        {"state_bits": 8},
        BF16,
        dense_bytes(8) + 2 * (LINEAR + 4 * LINEAR // 256) + 8 * 7 * LAYERS,
        (13.48, 13.69),
    ),
    "GaLore 1024": (
        None,
        GaLoreAdamW,
        {"rank": 1024, "state_bits": 16},
        BF16,
        low_rank_bytes(1024, 16, 16),
        (13.48, 9.4),
    ),
    "GaLore 8-bit 1024": (None, GaLoreAdamW, {"rank": 1024, **GALORE}, BF16, low_rank_bytes(1024, 8, 16), (13.48, 5.7)),
    "GaLore 8-bit 256": (None, GaLoreAdamW, {"rank": 256, **GALORE}, BF16, low_rank_bytes(256, 8, 16), (13.48, 1.82)),
    "Q-GaLore 1024": (
        False,
        QGaLoreAdamW,
        {"rank": 1024},
        INT8_LINEAR,
        low_rank_bytes(1024, 8, 4, lazy=True),
        (7.1, 4.31),
    ),
    "Q-GaLore 1024, int8 everywhere, larger side": (
        True,
        QGaLoreAdamW,
        {"rank": 1024, "proj_type": "reverse_std"},
        INT8_ALL,
        low_rank_bytes(1024, 8, 4, reverse=True, lazy=True),
        (6.84, 3.28),
    ),
    "Q-GaLore 256, int8 everywhere, 4-bit moments": (
        True,
        QGaLoreAdamW,
        {"rank": 256, "state_bits": 4},
        INT8_ALL,
        low_rank_bytes(256, 4, 4, lazy=True),
        (6.84, 0.83),
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_weights_and_state_of_llama_7b_are_the_formulas_to_the_byte(name):
    embeddings, kind, options, weights, state, printed = ROWS[name]
    model = build()
    if embeddings is not None:
        fw.apply(model, fw.Int8(embeddings=embeddings))
    groups = model.named_parameters() if kind is AdamW else param_groups(model)
    optimizer = kind(groups, lr=1e-3, **options)
    predicted = predict_bytes(model, optimizer)
    assert predicted["weights"] == weights
    assert predicted["optimizer_state"] == state == optimizer.state_bytes()
    assert (round(weights / 1e9, 2), round(state / 1e9, 2)) == printed
    assert predicted["gradients"] == 2 * (LINEAR + 2 * EMBEDDING + NORMS)


def test_layerwise_needs_the_gradient_of_the_embedding_and_core_gradients_none_of_the_matrices():
    model = build()
    fw.apply(model, fw.CoreGradient())
    optimizer = GaLoreAdamW(param_groups(model), lr=1e-3, rank=1024)
    with layerwise(model, optimizer):
        assert optimizer.gradient_bytes() == 2 * EMBEDDING  # 0.26 GB

"""Small causal language models of many architectures with random weights, and what a plain training step gives."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

VOCABULARY = 61
SIZES = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
LLAMA = {
    **SIZES,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
GPT2 = {**SIZES, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}

ARCHITECTURES = {
    "llama": LLAMA,
    "llama with biases": {**LLAMA, "mlp_bias": True, "attention_bias": True},
    "smollm": {**LLAMA, "tie_word_embeddings": True},
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": {**LLAMA, "head_dim": 8},
    "gemma2": {**LLAMA, "head_dim": 8, "final_logit_softcapping": 2.0},
    "phi3": LLAMA,
    "gpt2": {**GPT2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "olmo2": LLAMA,
    "cohere": {**LLAMA, "logit_scale": 0.25},
    "granite": {**LLAMA, "logits_scaling": 4.0},
    "phi": LLAMA,
    "gpt_neox": {**LLAMA, "attention_dropout": 0.0},
}
"""Settings by name; the name's first word is the architecture, `smollm` is a llama with a tied head."""


def causal_model(name, dtype=torch.float32, **changes):
    """Return a model in training mode with weights that follow from its name alone."""
    kind = {"smollm": "llama"}.get(name.split()[0], name.split()[0])
    with torch.random.fork_rng():
        torch.manual_seed(len(name))
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**ARCHITECTURES[name], **changes}))
        # Initial weights of 0.02 leave all logits near zero, where a soft cap or a factor hardly shows.
        for parameter in model.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.2)
    return model.to(dtype).train()


def batch(rows=3, length=19, seed=0):
    """Return token ids and labels whose rows begin and end with different numbers of ignored tokens."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(VOCABULARY, (rows, length), generator=generator)
    labels = input_ids.clone()
    for row in range(rows):
        labels[row, : 2 * row + seed] = -100
        labels[row, length - row :] = -100
    return {"input_ids": input_ids, "labels": labels}


def logits(model, **inputs):
    """Return a model's logits, of one fixed batch unless others are given."""
    with torch.no_grad():
        return model(**(inputs or {"input_ids": batch()["input_ids"]})).logits


def loss_and_gradients(model, inputs, **options):
    """Return the loss and the gradient of every parameter by name."""
    model.zero_grad()
    loss = model(**inputs, use_cache=False, **options).loss
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same_step(one, other, tolerance=1e-6):
    """Compare losses and gradients; float32 sums over 57 tokens in another order differ by some 1e-7 of the largest."""
    (loss, gradients), (expected_loss, expected) = one, other
    torch.testing.assert_close(loss, expected_loss, rtol=tolerance, atol=tolerance)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        error = (gradient - expected[name]).abs().max()
        assert error <= 2 * tolerance * max(1.0, expected[name].abs().max()), name

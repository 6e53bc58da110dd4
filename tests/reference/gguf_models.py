"""A small llama with a tokenizer of SmolLM2's kind, as GGUF files need them: byte-level BPE with merges."""

from pathlib import Path
from typing import Any

import torch
from chat_formats import SMOLLM2
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.trainer_utils import set_seed

TEXT = [
    "What is the capital of France? The capital of France is Paris.",
    "Red is the colour of blood, and green that of grass.",
    "In 1984 there were 12345 reasons, some of them good.",
] * 8


def bpe_tokenizer(*, digits: bool = False) -> Any:
    """Return a byte-level BPE of some 340 tokens, trained here; with single digits as SmolLM2's own."""
    backend = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    steps = [pre_tokenizers.Digits(individual_digits=True), level]
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps) if digits else level
    backend.decoder = decoders.ByteLevel()
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=marks, initial_alphabet=level.alphabet(), show_progress=False
    )
    backend.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
        pad_token="<|im_end|>",
        chat_template=SMOLLM2,
        clean_up_tokenization_spaces=False,
    )


def write_model(folder: Path, tokenizer: Any, **changes: Any) -> Any:
    """Write a model and its tokenizer, and return the model."""
    settings = {
        "vocab_size": len(tokenizer) + 4,
        "hidden_size": 96,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "max_position_embeddings": 512,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": None,
        "rms_norm_eps": 1e-5,
        # Initial weights of 0.02 leave all logits near zero, where a wrong order of rows hardly shows.
        "initializer_range": 0.15,
    }
    kind = changes.pop("model_type", "llama")
    set_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**settings, **changes})).eval()
    for name, parameter in model.named_parameters():
        # Biases of zero and norms of one would hide that they are lost.
        if name.endswith("bias") or name.endswith(("q_norm.weight", "k_norm.weight")):
            torch.nn.init.normal_(parameter, mean=float(name.endswith("weight")), std=0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model

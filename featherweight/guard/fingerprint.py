"""What tells one model and chat template from another, so that a guard is used where it was calibrated."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch

from featherweight.errors import CheckpointError
from featherweight.models.templates import choose_template, render
from featherweight.unwrap import unwrap_model

_SHAPE_KEYS = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
_SAMPLES, _VALUES = 12, 8
# bf16 keeps 8 bits, so a value and its rounding differ by at most 2^-9 of it; fine-tuning moves weights by more.
_TOLERANCE = 2.0**-7


def fingerprint(model: Any, tokenizer: Any) -> dict[str, Any]:
    """Return what a guard remembers of the model, the tokenizer and the chat template it was calibrated with.

    A sample of weights stands for all; it survives other float types, and what is quantised is left out.
    """
    inner = unwrap_model(model, peft=True)
    config = inner.config.get_text_config().to_dict()  # type: ignore[operator, union-attr]
    template = choose_template(tokenizer, None, where="guard")
    turns = [{"role": "user", "content": "How are you?"}]
    texts = [_rendered(tokenizer, turns), _rendered(tokenizer, [{"role": "system", "content": "Be kind."}, *turns])]
    if "strftime_now" in template:  # the text of one day is not that of the next
        texts = []
    words = tokenizer("The quick brown fox, 12 + 34 = 46; Grüße!", add_special_tokens=False)["input_ids"]
    return {
        "shape": {key: config.get(key) for key in _SHAPE_KEYS},
        "weights": _sample(model),
        "tokenizer": _digest([len(tokenizer), words]),
        "template": _digest([template, texts]),
    }


def check_fingerprint(stored: Mapping[str, Any], model: Any, tokenizer: Any) -> None:
    """Refuse a guard of another model, tokenizer or chat template.

    Raises:
        CheckpointError: naming the first difference.
    """
    found = fingerprint(model, tokenizer)
    different = next((key for key in ("shape", "tokenizer", "template") if stored.get(key) != found[key]), None)
    if different is None and not _same_weights(stored.get("weights", {}), found["weights"]):
        different = "weights"
    if different is not None:
        thing = {"shape": "model", "weights": "model", "template": "chat template"}
        # Which tensors were sampled says nothing; that some of them differ says all.
        value = f"{len(found[different])} sampled tensors" if different == "weights" else _short(found[different])
        raise CheckpointError(
            f"guard: {different}={value} of this {thing.get(different, different)} differs from what the guard was "
            "calibrated with; expected the same one. Calibrate again, or accept the difference with "
            "allow_mismatch=True (--allow-mismatch)."
        )


def _rendered(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    try:
        return render(tokenizer, messages, add_generation_prompt=True)
    except ValueError:  # a template that knows no system turn
        return ""


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode()).hexdigest()[:16]


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)[:80]


def _sample(model: Any) -> dict[str, list[float]]:
    """Return a few values of a few weights by name, and of all adapters' names the number."""
    named = [
        (name.replace("base_model.model.", "").replace(".base_layer", ""), one)
        for name, one in sorted(unwrap_model(model).named_parameters())
        if one.is_floating_point() and one.numel() >= _VALUES
    ]
    adapters = [(name, one) for name, one in named if "lora_" in name or "s2ft" in name]
    plain = [pair for pair in named if pair not in adapters] if adapters else named
    step = max(1, len(plain) // _SAMPLES)
    chosen = [*plain[::step][:_SAMPLES], *adapters[:4]]
    sample = {}
    for name, one in chosen:
        flat = one.detach().reshape(-1)
        places = torch.linspace(0, flat.numel() - 1, _VALUES).long().to(flat.device)
        sample[name] = [float(value) for value in flat[places].float()]
    sample["adapters"] = [float(len(adapters))]
    return sample


def _same_weights(stored: Mapping[str, list[float]], found: Mapping[str, list[float]]) -> bool:
    common = stored.keys() & found.keys()
    for name in common:
        before, after = torch.tensor(stored[name]), torch.tensor(found[name])
        if before.shape != after.shape or bool(((before - after).abs() > _TOLERANCE * before.abs() + 1e-7).any()):
            return False
    return len(common) > 1

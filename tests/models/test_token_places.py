import pytest
import torch
from tiny_models import SETTINGS, prompt, tiny_model

from featherweight.models.cache import can_pad, new_cache
from featherweight.models.generation import extend, prefill
from featherweight.models.token_places import counts_tokens

LONG_ROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
    "original_max_position_embeddings": 16,
}
KINDS = {
    "mpt": {"model_type": "mpt", "d_model": 32, "n_heads": 4, "n_layers": 2},
    "gpt_neo": {
        "model_type": "gpt_neo",
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 8,
    },
    "bart": {"model_type": "bart", "d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4},
    "bloom": {"model_type": "bloom", "n_layer": 2, "n_head": 4},
    "long_rope": {"model_type": "phi3", "rope_scaling": LONG_ROPE, "original_max_position_embeddings": 16},
}


@pytest.mark.parametrize(
    "name, expected",
    [("llama", True), ("gpt2", True), ("bloom", True), *((name, False) for name in ("mpt", "gpt_neo", "bart"))],
)
def test_masked_tokens_leave_no_trace_in_those_models_alone_that_are_said_to_count_tokens(monkeypatch, name, expected):
    monkeypatch.setitem(SETTINGS, name, SETTINGS.get(name) or KINDS[name])
    model, ids, further = tiny_model(name), prompt(1, 9, seed=1), prompt(1, 6, seed=2)
    plain = prefill(model, ids)
    extend(plain, further)
    gap = prefill(model, ids)
    extend(gap, prompt(1, 5, seed=3))
    gap.attention_mask = torch.tensor([[1] * 9 + [0] * 5])
    extend(gap, further)
    is_same = torch.allclose(gap.logits, plain.logits, atol=1e-4)
    assert (is_same, counts_tokens(model), can_pad(new_cache(model))) == (expected, expected, expected)


def test_frequencies_that_follow_the_longest_row_of_a_batch_are_known(monkeypatch):
    monkeypatch.setitem(SETTINGS, "long_rope", KINDS["long_rope"])
    model, short = tiny_model("long_rope"), prompt(1, 5, seed=1)
    ids = torch.cat([torch.nn.functional.pad(short, (15, 0)), prompt(1, 20, seed=2)])
    mask = torch.cat([torch.tensor([[0] * 15 + [1] * 5]), torch.ones(1, 20, dtype=torch.int64)])
    assert not torch.allclose(prefill(model, ids, mask).logits[:1], prefill(model, short).logits, atol=1e-2)
    assert not counts_tokens(model)

import pytest
import torch
from tiny_models import CROPPED, RECURRENT, prompt, tiny_model

from featherweight.errors import ShapeError
from featherweight.models.decoding_rows import drop_columns, join, keep_rows
from featherweight.models.generation import extend, fork, generate, prefill

EVERY = [*CROPPED, *RECURRENT]
# Logits of order 10 in float32, of which four layers summed in another order change the last digits.
ROUNDING = 1e-4


def test_rows_are_kept_repeated_and_reordered():
    for name in EVERY:
        model, ids = tiny_model(name), prompt(3)
        decoding = prefill(model, ids)
        keep_rows(decoding, [2, 0, 0])
        assert torch.equal(
            generate(decoding, max_new_tokens=6), generate(prefill(model, ids[[2, 0, 0]]), max_new_tokens=6)
        )


def test_a_row_with_fewer_new_tokens_has_padding_in_front_of_them_and_goes_on_as_alone():
    model, ids = tiny_model("llama"), prompt(1, 9)
    forced = prompt(1, 4, seed=3)[0]
    decoding = prefill(model, ids)
    keep_rows(decoding, [0, 0])
    alone = prefill(model, ids)
    extend(alone, forced[-1:])
    rows = torch.stack([torch.tensor([0, 0, 0, int(forced[-1])]), forced])
    extend(decoding, rows, torch.tensor([[0, 0, 0, 1], [1, 1, 1, 1]]))
    torch.testing.assert_close(decoding.logits[:1], alone.logits, rtol=0, atol=ROUNDING)
    keep_rows(decoding, [0])
    drop_columns(decoding, [9, 10, 11])
    assert decoding.attention_mask is None and torch.equal(decoding.token_ids, alone.token_ids)
    for layer, expected in zip(decoding.cache.layers, alone.cache.layers, strict=True):
        torch.testing.assert_close(layer.keys, expected.keys, rtol=0, atol=1e-5)
    assert torch.equal(generate(decoding, max_new_tokens=8), generate(alone, max_new_tokens=8))


def test_decodings_of_different_lengths_join_into_one_batch_and_go_on_as_alone():
    model = tiny_model("llama")
    prompts = [prompt(1, 5), prompt(2, 9, seed=1), prompt(1, 2, seed=2)]
    alone = torch.cat([generate(prefill(model, ids), max_new_tokens=8) for ids in prompts])
    together = join([prefill(model, ids) for ids in prompts])
    assert torch.equal(generate(together, max_new_tokens=8), alone)


def test_windows_and_recurrent_states_do_not_join():
    for name in ("mistral", "qwen3_next"):
        with pytest.raises(ShapeError, match="count places, not tokens"):
            join([prefill(tiny_model(name), prompt(1, 5)), prefill(tiny_model(name), prompt(1, 7))])


def test_rows_join_leave_and_lose_padding_in_any_order_and_go_on_as_alone():
    # Longer and shorter ones, first and last ones leaving: places that rows from behind fill, and room that runs out.
    model = tiny_model("llama")
    prompts = [prompt(1, length, seed=length) for length in (7, 3, 12, 5, 40)]
    alone = [generate(prefill(model, ids), max_new_tokens=90)[0].tolist() for ids in prompts]
    written = [[] for _ in prompts]
    batch, rows = prefill(model, prompts[0]), [0]

    def step(count):
        for _ in range(count):
            chosen = batch.logits.argmax(dim=1)
            for row, token in zip(rows, chosen.tolist(), strict=True):
                written[row].append(token)
            extend(batch, chosen[:, None])

    step(2)
    batch, rows = join([batch, prefill(model, prompts[1]), prefill(model, prompts[2])]), [0, 1, 2]
    step(3)
    keep_rows(batch, [2, 1])
    rows = [2, 1]
    step(70)
    joined = prefill(model, prompts[3])
    kept = fork(joined)
    batch, rows = join([batch, joined]), [2, 1, 3]
    step(1)
    keep_rows(batch, [2])
    rows = [3]
    padding = int((batch.attention_mask[0] == 0).sum())
    drop_columns(batch, list(range(padding)))
    assert batch.attention_mask is None and batch.length == 6
    step(2)
    batch, rows = join([batch, prefill(model, prompts[4])]), [3, 4]
    step(5)
    for row, tokens in enumerate(written):
        assert tokens == alone[row][: len(tokens)] and tokens, row
    assert generate(kept, max_new_tokens=8)[0].tolist() == alone[3][:8]

"""The loss of next-token prediction."""

import math

import pytest
import torch
from causal_models import batch, causal_model

import featherweight as fw
from featherweight.text.causal_loss import held_out_metrics, summed_loss


@pytest.mark.parametrize("method", [None, fw.MsT()], ids=str)
def test_the_sum_over_the_tokens_is_their_number_times_the_models_own_mean(method):
    model, inputs = causal_model("llama", torch.float64), batch()
    inputs = {name: inputs[name] for name in ("input_ids", "labels")}
    expected = model(**inputs, use_cache=False).loss
    if method is not None:
        fw.apply(model, method)
    total, tokens = summed_loss(model, inputs)
    assert tokens == int((inputs["labels"][:, 1:] != -100).sum())
    # The loss is summed in float32.
    torch.testing.assert_close(total / tokens, expected, rtol=1e-6, atol=0, check_dtype=False)


def test_metrics_of_a_split_weigh_each_token_alike_and_leave_the_mode():
    model = causal_model("llama").train()
    one, other = ({name: rows[name] for name in ("input_ids", "labels")} for rows in (batch(rows=1), batch(rows=4)))
    found = held_out_metrics(model, [one, other], summed_loss)
    model.eval()
    sums = [summed_loss(model, part) for part in (one, other)]
    mean = sum(total.item() for total, _ in sums) / sum(tokens for _, tokens in sums)
    assert found["tokens"] == sum(tokens for _, tokens in sums)
    assert found["held_out_loss"] == pytest.approx(mean, rel=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(mean), rel=1e-6)


def test_the_mode_comes_back_when_a_loss_fails():
    model = causal_model("llama").train()
    with pytest.raises(ZeroDivisionError):
        held_out_metrics(model, [batch()], lambda *_: 1 / 0)
    assert model.training

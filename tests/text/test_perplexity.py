"""Perplexity of one stream of tokens in windows."""

import math

import pytest
import torch
from causal_models import VOCABULARY, causal_model

from featherweight.text.perplexity import describe_protocol, perplexity


def test_it_is_the_exponential_of_the_mean_over_full_windows():
    model = causal_model("llama").train()
    tokens = torch.randint(VOCABULARY, (50,), generator=torch.Generator().manual_seed(0))
    windows = tokens[:48].view(3, 16)
    expected = math.exp(model.eval()(windows, labels=windows, use_cache=False).loss.item())
    assert perplexity(model.train(), tokens, window_tokens=16) == pytest.approx(expected, rel=1e-5)
    assert model.training


def test_a_text_shorter_than_a_window_is_one_window():
    model, tokens = causal_model("llama").eval(), torch.arange(9)
    assert perplexity(model, tokens) == perplexity(model, tokens, window_tokens=9)


def test_a_model_beyond_float64_is_infinite_and_no_crash():
    model = causal_model("llama").eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(1e6)
    assert perplexity(model, torch.arange(9)) == math.inf


def test_the_protocol_names_text_tokens_and_windows():
    line = describe_protocol("wiki", 1000, 128)
    assert "wiki" in line and "1000 tokens" in line and "windows of 128" in line

import copy
import math

import pytest
import torch

from featherweight.models import load_model
from featherweight.text.forgetting import measure_forgetting


def test_a_model_has_forgotten_nothing_of_itself_and_kl_is_its_formula():
    base = load_model("tiny").eval()
    rows = [torch.arange(20) % 250, torch.arange(30).view(2, 15)]
    nothing = measure_forgetting(base, base, rows)
    tuned = copy.deepcopy(base).train()
    for parameter in tuned.parameters():
        parameter.data += 0.02 * torch.randn(
            parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())
        )

    found = measure_forgetting(tuned, base, rows)

    assert nothing["kl"] == 0 and nothing["perplexity"] == nothing["base_perplexity"] and nothing["tokens"] == 19 + 28
    assert tuned.training and not base.training
    kl = loss = 0.0
    with torch.no_grad():
        for row in (torch.atleast_2d(one) for one in rows):
            p, q = (one(input_ids=row).logits[:, :-1].double().log_softmax(-1) for one in (base, tuned.eval()))
            kl += float((p.exp() * (p - q)).sum())
            loss -= float(q.gather(-1, row[:, 1:, None]).sum())
    assert found["kl"] == pytest.approx(kl / 47, rel=1e-3) and found["kl"] > 0.01
    assert found["perplexity"] == pytest.approx(math.exp(loss / 47), rel=1e-5)

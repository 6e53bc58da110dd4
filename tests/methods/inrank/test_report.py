"""What a growth tells."""

import pytest
import torch
from causal_models import causal_model
from inrank_runs import FAST, train

import featherweight as fw
from featherweight.methods.inrank import InRank


@pytest.mark.parametrize(
    ("width", "depth", "rank", "smaller"), [(768, 12, 254, 1.36), (1024, 24, 287, 1.58), (1280, 36, 313, 1.73)]
)
def test_sizes_of_the_gpt2_family_are_those_of_the_official_readme(width, depth, rank, smaller):
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config(n_embd=width, n_layer=depth, n_head=width // 64))
    before = sum(p.numel() for p in model.parameters())
    report = fw.apply(model, InRank(init_rank=rank, buffer=0, target_modules=["mlp.c_fc", "mlp.c_proj"]))
    after = sum(p.numel() for p in model.parameters())
    assert before / after == pytest.approx(smaller, abs=0.006)
    facts = report.section("Totals").facts
    assert facts["parameters"] == after and facts["parameters if dense"] == before
    assert before - after == depth * (2 * width * 4 * width - 2 * rank * 5 * width)


def test_the_report_tells_how_ranks_grew(tmp_path):
    model = causal_model("llama")
    method = InRank(**FAST)
    fw.apply(model, method)
    train(model, method, torch.optim.AdamW(model.parameters(), lr=2e-2), 8)
    report = method.report(model)
    curves = report.section("Rank over time").curves
    assert len(curves) == 7 and all(xs == [3, 5, 7] for xs, _ in curves.values())
    for row in report.section("Layers").rows:
        layer = model.get_submodule(row[0])
        assert row[4] == layer.rank and row[6] == layer.U.weight.numel() + layer.V.weight.numel()
    report.save_html(tmp_path / "report.html")

"""Numbers of the report."""

from causal_models import causal_model

import featherweight as fw
from featherweight.methods.low_rank_model import low_rank_modules

SMALL = {"min_dim": 8}


def test_the_report_counts_what_the_model_holds():
    model = causal_model("llama")
    report = fw.apply(model, fw.WeLore(rank_reduction=0.5, **SMALL))
    facts = report.section("Totals").facts
    assert facts["parameters after"] == sum(p.numel() for p in model.parameters())
    perms = sum(m.perm.nbytes for m in low_rank_modules(model).values())
    assert facts["bytes after"] == sum(p.numel() * p.element_size() for p in model.parameters()) + perms
    for row in report.section("Matrices").rows:
        module = model.get_submodule(row[0])
        assert row[3] == getattr(module, "rank", min(row[1], row[2]))
        assert row[9] == sum(p.numel() for n, p in module.named_parameters() if "bias" not in n)

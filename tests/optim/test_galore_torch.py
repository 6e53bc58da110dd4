"""Equality with galore-torch 1.0 in one process, and the import of its states.

Where the two must differ, it is by galore-torch's choice, and the test says so:
- its basis has LAPACK's arbitrary signs while its moments stay, so a refresh mixes random signs into them; the
comparison over
  refreshes gives both sides the same signs;
- its eps acts before bias correction and its decay comes after the update (our options `eps_mode`, `decay_order`);
- it refreshes all matrices in the same step (`stagger=False`).
"""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from featherweight.errors import CheckpointError
from featherweight.linalg.basis import fit_left_basis
from featherweight.optim import GaLoreAdamW, param_groups
from featherweight.optim.galore_torch import load_galore_torch

official = pytest.importorskip("galore_torch", exc_type=ImportError)
OFFICIAL_OPTIONS = {
    "eps": 1e-6,
    "moment_policy": "keep",
    "basis_method": "svd",
    "stagger": False,
    "eps_mode": "official",
    "decay_order": "after",
}


def small_llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=97,
    )
    return LlamaForCausalLM(config)


def official_groups(groups):
    return [
        {**{k: v for k, v in group.items() if k not in ("low_rank",)}, "params": [p for _, p in group["params"]]}
        for group in groups
    ]


def train(model, optimizer, start, stop):
    for step in range(start, stop):
        tokens = torch.randint(0, 97, (2, 16), generator=torch.Generator().manual_seed(step))
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def with_fixed_signs(monkeypatch):
    """Give galore-torch's SVD bases the sign convention of ours; the subspaces are the same."""
    projector = official.galore_projector.GaLoreProjector

    def basis(self, weights, rank, type):
        generator = torch.Generator()
        if type == "left":
            return fit_left_basis(weights, rank, "svd", generator=generator)
        right = fit_left_basis(weights.T, rank, "svd", generator=generator).T
        return right if type == "right" else [fit_left_basis(weights, rank, "svd", generator=generator), right]

    monkeypatch.setattr(projector, "get_orthogonal_matrix", basis)


def relative_difference(a, b):
    """Largest over the parameters of the difference, relative to the parameter's own largest entry."""
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return max(((p - q).abs().max() / p.abs().max()).item() for p, q in pairs)


@pytest.mark.parametrize(("gap", "weight_decay"), [(1000, 0.0), (1000, 0.1), (20, 0.1)])
@pytest.mark.parametrize("proj_type", ["std", "right", "left"])
def test_fifty_steps_of_a_small_llama_equal_galore_torch(monkeypatch, gap, weight_decay, proj_type):
    if gap < 50:
        with_fixed_signs(monkeypatch)
    ours, theirs = small_llama(), small_llama()
    keys = {"rank": 8, "update_proj_gap": gap, "scale": 0.25, "proj_type": proj_type}
    optimizer = GaLoreAdamW(param_groups(ours, **keys), lr=1e-3, weight_decay=weight_decay, **OFFICIAL_OPTIONS)
    reference = official.GaLoreAdamW(
        official_groups(param_groups(theirs, **keys)), lr=1e-3, weight_decay=weight_decay, no_deprecation_warning=True
    )
    start = copy.deepcopy(ours)
    train(ours, optimizer, 0, 50)
    train(theirs, reference, 0, 50)
    assert relative_difference(start, ours) > 0.01  # the weights moved by far more than the tolerance
    assert relative_difference(ours, theirs) < 1e-5


def test_without_the_sign_fix_galore_torch_scrambles_its_moments_at_a_refresh():
    # A basis and its negative span the same subspace, so a correct step must not depend on the sign; galore-torch's
    # does.
    def after_refresh(flip):
        weight = torch.nn.Parameter(torch.eye(6, 12))
        keys = {"rank": 2, "update_proj_gap": 3, "scale": 1.0, "proj_type": "std"}
        optimizer = official.GaLoreAdamW([{"params": [weight], **keys}], lr=0.1, no_deprecation_warning=True)
        grad = torch.randn(6, 12, generator=torch.Generator().manual_seed(0))
        for step in range(4):
            if step == 3 and flip:
                projector = optimizer.state[weight]["projector"]
                fit = projector.get_orthogonal_matrix
                projector.get_orthogonal_matrix = lambda *args, fit=fit, **kwargs: -fit(*args, **kwargs)
            weight.grad = grad.clone()
            optimizer.step()
        return weight.detach()

    assert (after_refresh(False) - after_refresh(True)).abs().max() > 0.05


@pytest.mark.parametrize("proj_type", ["std", "full"])
def test_import_of_a_galore_torch_checkpoint_continues_its_run(tmp_path, monkeypatch, proj_type):
    with_fixed_signs(monkeypatch)
    keys = {"rank": 8, "update_proj_gap": 7, "scale": 0.25, "proj_type": proj_type}
    theirs = small_llama()
    reference = official.GaLoreAdamW(
        official_groups(param_groups(theirs, **keys)), lr=1e-3, no_deprecation_warning=True
    )
    train(theirs, reference, 0, 14)
    path = tmp_path / "optimizer.pt"
    torch.save({"optimizer": reference.state_dict()}, path)
    with pytest.raises(Exception, match="GaLoreProjector"):
        torch.load(path, weights_only=True)

    ours = copy.deepcopy(theirs)
    optimizer = GaLoreAdamW(param_groups(ours, **keys), lr=1e-3, **OFFICIAL_OPTIONS)
    load_galore_torch(optimizer, path)
    train(ours, optimizer, 14, 24)
    train(theirs, reference, 14, 24)
    assert relative_difference(ours, theirs) < 1e-5
    assert sum(t.nbytes for s in optimizer.state.values() for t in s.values()) == optimizer.state_bytes()


def test_import_names_what_does_not_fit(tmp_path):
    keys = {"rank": 8, "update_proj_gap": 7, "scale": 0.25, "proj_type": "std"}
    theirs = small_llama()
    reference = official.GaLoreAdamW(
        official_groups(param_groups(theirs, **keys)), lr=1e-3, no_deprecation_warning=True
    )
    train(theirs, reference, 0, 1)
    path = tmp_path / "optimizer.pt"
    torch.save(reference.state_dict(), path)
    model = small_llama()
    with pytest.raises(CheckpointError, match=r"exp_avg of shape \(8, 48\)|exp_avg of shape \(48, 8\)"):
        load_galore_torch(GaLoreAdamW(param_groups(model, rank=4)), path)
    with pytest.raises(CheckpointError, match="groups of"):
        load_galore_torch(GaLoreAdamW(model.parameters()), path)
    saved = reference.state_dict()
    for state in saved["state"].values():
        del state["exp_avg_sq"]  # as in the state of the 8-bit version, which has other names
    torch.save(saved, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="without exp_avg_sq; expected that of galore-torch's GaLoreAdamW"):
        load_galore_torch(GaLoreAdamW(param_groups(model, **keys)), tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_galore_torch(GaLoreAdamW(param_groups(model, rank=4)), tmp_path / "missing.pt")

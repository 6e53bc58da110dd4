import copy
import math
import runpy
from pathlib import Path

import pytest
import torch
from torch import nn

import featherweight as fw
from featherweight.errors import CheckpointError, ConfigError, NumericsError
from featherweight.linalg.random import keyed_generator
from featherweight.linalg.spectrum import explained_rank
from featherweight.methods.inrank import InRank, grow
from featherweight.methods.inrank_state import growth_state
from featherweight.methods.low_rank_model import low_rank_modules
from featherweight.nn.low_rank_linear import LowRankLinear

MODELS = runpy.run_path(str(Path(__file__).parents[1] / "reference" / "causal_models.py"))
causal_model, batch = MODELS["causal_model"], MODELS["batch"]
# A random buffer, so that ranks grow within a few steps.
FAST = {"buffer": 4, "every": 2, "warmup": 1, "init_rank": 1, "buffer_init": "random"}


def logits(model):
    with torch.no_grad():
        return model(input_ids=batch()["input_ids"]).logits


def train(model, method, optimizer, steps, start=0):
    losses = []
    for step in range(start + 1, start + steps + 1):
        loss = model(**batch(seed=step % 3)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(model, optimizer, step)
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", ["llama", "llama with biases", "gpt2", "smollm"])
def test_growth_keeps_the_function_and_only_new_columns_learn_at_first(name, generator):
    model = causal_model(name).eval()
    fw.apply(model, InRank(buffer=3, init_rank=2))
    before = logits(model)
    layer = next(iter(low_rank_modules(model).values()))
    old = layer.rank
    grow(layer, old + 4, None, generator)
    # Zeros are added to every sum; only the order of summation may change.
    torch.testing.assert_close(logits(model), before, rtol=1e-6, atol=1e-6 * float(before.abs().max()))
    assert layer.rank == old + 4 and not layer.U.weight[:, old:].any()
    rows = layer.V.weight.detach()
    torch.testing.assert_close(rows[old:] @ rows[:old].mT, torch.zeros(4, old), rtol=0, atol=1e-5)
    sizes = rows.square().mean(1).sqrt()
    assert float(sizes[old:].mean()) == pytest.approx(float(sizes[:old].mean()), rel=0.2)
    model(**batch()).loss.backward()
    assert layer.U.weight.grad[:, old:].abs().min() > 0
    assert not layer.V.weight.grad[old:].any() and layer.V.weight.grad[:old].any()


def test_growth_in_float64_changes_no_bit(generator):
    layer = LowRankLinear(20, 30, 5, dtype=torch.float64)
    x = torch.randn(7, 20, generator=generator, dtype=torch.float64)
    expected = layer(x).detach()
    grow(layer, 9, None, generator)
    torch.testing.assert_close(layer(x).detach(), expected, rtol=1e-15, atol=1e-15)


def test_the_rank_is_the_least_that_explains_enough_and_never_falls():
    model = causal_model("llama")
    method = InRank(**FAST, patience=None)
    fw.apply(model, method)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    before = dict(growth_state(model).ranks)
    checked = 0
    for step in range(1, 25):
        model(**batch(seed=step % 3)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        spectra = {
            n: torch.linalg.svdvals(m.weight.detach().double())[: m.rank] for n, m in low_rank_modules(model).items()
        }
        live = {n: m.rank for n, m in low_rank_modules(model).items()}
        method.after_step(model, optimizer, step)
        ranks = growth_state(model).ranks
        if step > 1 and (step - 1) % 2 == 0:
            checked += 1
            for name, values in spectra.items():
                need = explained_rank(values, 0.9)
                # Within float32 rounding of the threshold either is right; no case of that here.
                assert ranks[name] == min(max(need, before[name]), live[name])
        else:
            assert ranks == before
        for name, layer in low_rank_modules(model).items():
            limit = method.limit(layer.out_features, layer.in_features)
            assert before[name] <= ranks[name] <= layer.rank <= limit
            assert layer.rank == max(live[name], min(ranks[name] + 4, limit))
        before = dict(ranks)
    assert checked == 11 and max(before.values()) > 4
    history = growth_state(model).history
    assert len(history) == 11 * len(before) and {e["step"] for e in history} == set(range(3, 24, 2))


def test_raising_the_share_never_lowers_a_rank_at_the_first_check():
    found = {}
    for explained in (0.8, 0.9, 0.95, 0.99):
        model = causal_model("llama")
        method = InRank(**{**FAST, "buffer": 12}, explained=explained)
        fw.apply(model, method)
        train(model, method, torch.optim.AdamW(model.parameters(), lr=2e-2), 3)
        found[explained] = growth_state(model).ranks
    for lower, higher in zip(list(found.values()), list(found.values())[1:], strict=False):
        assert all(lower[name] <= higher[name] for name in lower)
    assert sum(found[0.99].values()) > sum(found[0.8].values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{"criterion": "variance"}, {"rank_multiple": 8}, {"max_rank": 6}])
def test_variants_of_growth_learn_and_stay_within_their_limits(options, dtype):
    model = causal_model("llama", dtype)
    method = InRank(**FAST, **options)
    fw.apply(model, method)
    losses = train(model, method, torch.optim.AdamW(model.parameters(), lr=2e-2), 16)
    assert losses[-1] < losses[0]
    layers = low_rank_modules(model)
    assert all(m.U.weight.dtype == dtype for m in layers.values())
    if "max_rank" in options:
        assert all(m.rank <= 6 for m in layers.values())
    if "rank_multiple" in options:
        for entry in growth_state(model).history:
            layer = layers[entry["layer"]]
            assert entry["live"] % 8 == 0 or entry["live"] == method.limit(layer.out_features, layer.in_features)


def test_evaluation_changes_nothing():
    model = causal_model("llama")
    method = InRank(**FAST)
    fw.apply(model, method)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    train(model, method, optimizer, 3)
    state = copy.deepcopy(growth_state(model))
    weights = copy.deepcopy(model.state_dict())
    model.eval()
    for _ in range(50):
        logits(model)
    model.train()
    assert growth_state(model) == state
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=2e-2),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=2e-2),
    "our adamw": lambda p: fw.optim.AdamW(p, lr=2e-2),
    "galore": lambda p: fw.optim.GaLoreAdamW(p, lr=2e-2, rank=4),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_optimizer_follows_growth_and_freezing(name):
    model = causal_model("llama")
    method = InRank(**FAST, freeze_step=9, patience=None)
    fw.apply(model, method)
    optimizer = OPTIMIZERS[name](model.parameters())
    losses = train(model, method, optimizer, 14)
    assert growth_state(model).is_frozen and max(growth_state(model).ranks.values()) > 1
    assert all(m.rank == growth_state(model).ranks[n] for n, m in low_rank_modules(model).items())
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in model.parameters()} == {id(p) for p in optimizer.state}
    for parameter, state in optimizer.state.items():
        for key in ("exp_avg", "exp_avg_sq", "momentum_buffer"):
            if key in state and name != "galore":
                assert state[key].shape == parameter.shape
    assert losses[-1] < losses[0] and all(math.isfinite(loss) for loss in losses)


def test_freezing_at_full_rank_keeps_product_and_moments():
    model = causal_model("llama", torch.float64)
    method = InRank(**FAST, drop_buffer=False, patience=None)
    fw.apply(model, method)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    train(model, method, optimizer, 6)
    before = logits(model)
    optimizer.zero_grad()
    model(**batch()).loss.backward()
    # A momentum that is the gradient itself: after the change of coordinates it must still be it.
    for parameter in model.parameters():
        optimizer.state[parameter]["momentum_buffer"].copy_(parameter.grad)
    method.freeze(model, optimizer)
    torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-9)
    optimizer.zero_grad()
    model(**batch()).loss.backward()
    for name, layer in low_rank_modules(model).items():
        for parameter in (layer.U.weight, layer.V.weight):
            buffer = optimizer.state[parameter]["momentum_buffer"]
            (
                torch.testing.assert_close(
                    buffer, parameter.grad, rtol=0, atol=1e-8 * float(parameter.grad.abs().max() + 1)
                ),
                name,
            )


def test_no_growth_and_a_full_buffer_is_plain_factored_training():
    first, second = causal_model("llama"), causal_model("llama")
    method = InRank(explained=1.0, init_rank=2, buffer=100, every=1, warmup=0, patience=None)
    for model in (first, second):
        fw.apply(model, method)
    assert all(m.rank == method.limit(m.out_features, m.in_features) for m in low_rank_modules(first).values())
    one, other = (torch.optim.AdamW(m.parameters(), lr=1e-2) for m in (first, second))
    losses = train(first, method, one, 6)
    plain = []
    for step in range(1, 7):
        loss = second(**batch(seed=step % 3)).loss
        loss.backward()
        other.step()
        other.zero_grad()
        plain.append(loss.item())
    assert losses == plain
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_with_w0_the_start_is_the_dense_model_and_merging_adds_it():
    dense = causal_model("llama").eval()
    model = copy.deepcopy(dense)
    method = InRank(**FAST, keep_w0=True, patience=None)
    fw.apply(model, method)
    assert torch.equal(logits(model), logits(dense))  # bit by bit
    bases = {n: m.base.clone() for n, m in low_rank_modules(model).items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    train(model, method, optimizer, 7)
    assert all(torch.equal(m.base, bases[n]) for n, m in low_rank_modules(model).items())
    products = {n: (bases[n] + m.U.weight @ m.V.weight).detach() for n, m in low_rank_modules(model).items()}
    method.freeze(model, optimizer)
    before = logits(model)
    fw.remove(model, method)
    for name, product in products.items():
        # What the ranks do not explain was cut off: at most a tenth of the energy of the update.
        found, update = model.get_submodule(name).weight.detach(), product - bases[name]
        assert float((found - product).norm()) <= math.sqrt(0.1001) * float(update.norm()) + 1e-6
    torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-4)
    assert not low_rank_modules(model) and all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("init", ["kaiming", "spectral", "orthogonal"])
def test_initial_factors(init):
    dense = causal_model("llama")
    model = copy.deepcopy(dense)
    fw.apply(model, InRank(init=init, buffer=6, buffer_init="random"))
    layer, linear = model.model.layers[0].mlp.up_proj, dense.model.layers[0].mlp.up_proj
    if init == "spectral":
        # E|y|^2 of isotropic inputs is the square of the norm: that of the dense layer.
        assert float(layer.weight.detach().norm()) == pytest.approx(float(linear.weight.detach().norm()), rel=1e-5)
        left = torch.linalg.svd(linear.weight.detach()).U[:, :8]
        torch.testing.assert_close(left @ (left.mT @ layer.weight.detach()), layer.weight.detach(), rtol=0, atol=1e-4)
    elif init == "orthogonal":
        torch.testing.assert_close(layer.V.weight @ layer.V.weight.mT, torch.eye(8), rtol=0, atol=1e-5)
    else:
        assert float(layer.V.weight.detach().abs().max()) <= 32**-0.5
        assert float(layer.U.weight.detach().abs().max()) <= 16**-0.5
    again = copy.deepcopy(dense)
    fw.apply(again, InRank(init=init, buffer=6, buffer_init="random"))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_the_first_buffer_begins_at_zero():
    model = causal_model("llama").eval()
    twin = copy.deepcopy(model)
    fw.apply(model, InRank(init_rank=3, buffer=6))
    fw.apply(twin, InRank(init_rank=3, buffer=6, buffer_init="random"))
    for layer, random in zip(low_rank_modules(model).values(), low_rank_modules(twin).values(), strict=True):
        assert layer.rank == 9 and not layer.U.weight[:, 3:].any()
        assert torch.equal(layer.U.weight[:, :3], random.U.weight[:, :3]) and torch.equal(
            layer.V.weight, random.V.weight
        )


def test_layers_with_an_activation_grow_exactly_and_keep_their_size():
    model = causal_model("llama")
    method = InRank(**{**FAST, "buffer": 6}, activation="silu", patience=2, explained=0.5)
    fw.apply(model, method)
    layer = model.model.layers[0].mlp.up_proj
    before = logits(model)
    grow(layer, layer.rank + 3, None, keyed_generator(0, 1))
    torch.testing.assert_close(logits(model), before, rtol=1e-5, atol=1e-5 * float(before.abs().max()))
    losses = train(model, method, torch.optim.AdamW(model.parameters(), lr=1e-2), 20)
    assert losses[-1] < losses[0] and growth_state(model).is_frozen and growth_state(model).history
    with pytest.raises(ConfigError, match="activation"):
        fw.remove(model, method)


def test_a_checkpoint_in_the_middle_of_growth_goes_on_bit_for_bit():
    method = InRank(**FAST, patience=3, freeze_step=15)
    torch.manual_seed(0)

    def start():
        model = causal_model("llama")
        fw.apply(model, method)
        return model, torch.optim.AdamW(model.parameters(), lr=2e-2)

    whole, optimizer = start()
    train(whole, method, optimizer, 6)
    saved = copy.deepcopy((whole.state_dict(), optimizer.state_dict(), method.state_dict(whole)))
    grown = {n: m.rank for n, m in low_rank_modules(whole).items()}
    expected = train(whole, method, optimizer, 20, start=6)

    model, optimizer = start()
    assert {n: m.rank for n, m in low_rank_modules(model).items()} != grown
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    method.load_state_dict(model, saved[2])
    assert {n: m.rank for n, m in low_rank_modules(model).items()} == grown

    assert train(model, method, optimizer, 20, start=6) == expected
    assert growth_state(model) == growth_state(whole) and growth_state(model).is_frozen
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), whole.parameters(), strict=True))
    other = causal_model("llama")
    fw.apply(other, InRank(**FAST, target_modules=["up_proj"]))
    with pytest.raises(CheckpointError, match="down_proj"):
        method.load_state_dict(other, saved[2])


def test_a_grown_model_is_an_ordinary_low_rank_folder(tmp_path):
    model = causal_model("llama").eval()
    method = InRank(**FAST)
    fw.apply(model, method)
    train(model, method, torch.optim.AdamW(model.parameters(), lr=2e-2), 6)
    model.save_pretrained(tmp_path)
    loaded = fw.load_low_rank(tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    fw.merge_low_rank(loaded)
    report = fw.apply(loaded, fw.WeLore(rank_reduction=0.9, min_dim=8))  # a grown model can be cut further
    kept = {row[0]: row[3] for row in report.section("Matrices").rows}
    ranks = {n: m.rank for n, m in low_rank_modules(model).items()}
    assert sum(kept.values()) < sum(ranks.values())


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


def linear_network_spectra(steps, lr=2e-3, size=20):
    """Three orthogonal matrices; the target is their product plus one of rank 3 with singular values 8, 4, 2."""
    generator = torch.Generator().manual_seed(3)

    def orthogonal():
        return torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q

    weights = [orthogonal().requires_grad_() for _ in range(3)]
    first = [w.detach().clone() for w in weights]
    wanted = torch.zeros(size, dtype=torch.float64)
    wanted[:3] = torch.tensor([8.0, 4.0, 2.0])
    target = first[2] @ first[1] @ first[0] + orthogonal() @ torch.diag(wanted) @ orthogonal().mT
    spectra = []
    for _ in range(steps):
        loss = 0.5 * (weights[2] @ weights[1] @ weights[0] - target).square().sum()
        gradients = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                weight -= lr * gradient
        spectra.append(torch.linalg.svdvals(weights[0].detach() - first[0]))
    return torch.stack(spectra)


def test_the_update_of_a_deep_linear_network_climbs_through_its_ranks():
    spectra = linear_network_spectra(600)
    torch.testing.assert_close(
        spectra[0][:3], 2e-3 * torch.tensor([8.0, 4.0, 2.0], dtype=torch.float64), rtol=1e-9, atol=0
    )
    assert float(spectra[0][3]) < 1e-14
    times = [int((spectra[:, i] >= 0.9 * spectra[-1, i]).nonzero()[0]) for i in range(3)]
    assert times[0] < times[1] < times[2]
    energy = spectra.square()
    assert float((energy[:, :3].sum(1) / energy.sum(1)).min()) >= 0.98


def test_what_cannot_work_is_refused():
    model = causal_model("llama")
    method = InRank(**FAST)
    with pytest.raises(ConfigError, match="no growing layers"):
        method.after_step(model, torch.optim.SGD(model.parameters(), lr=0.1), 1)
    with pytest.raises(ConfigError, match="Lower init_rank"):
        fw.apply(model, InRank(init_rank=40))
    before = torch.optim.SGD(list(model.parameters()), lr=0.1)
    fw.apply(model, method)
    for layer in low_rank_modules(model).values():
        torch.nn.init.normal_(layer.U.weight)
    with pytest.raises(ConfigError, match="Build the optimizer from the model's parameters after fw.apply"):
        method.after_step(model, before, 3)
    with pytest.raises(ConfigError, match="applied to this model already"):
        fw.apply(model, method)
    model.model.layers[1].mlp.up_proj.U.weight.data[0] = math.inf
    with pytest.raises(NumericsError, match="'model.layers.1.mlp.up_proj'"):
        method.after_step(model, torch.optim.SGD(model.parameters(), lr=0.1), 3)
    for options in ({"explained": 0.0}, {"explained": 1.1}, {"every": 0}, {"max_rank": 1}, {"unknown": 1}):
        with pytest.raises(ConfigError):
            InRank(**options)


def test_layer_wise_updates_are_refused_before_anything_is_lost():
    model = causal_model("llama")
    method = InRank(**FAST)
    fw.apply(model, method)
    optimizer = fw.optim.AdamW(model.parameters(), lr=1e-2)
    for layer in low_rank_modules(model).values():
        nn.init.normal_(layer.U.weight)
    with fw.optim.layerwise(model, optimizer), pytest.raises(ConfigError, match="layer-wise"):
        method.after_step(model, optimizer, 3)


def test_small_layers_stay_dense_and_are_named():
    model = nn.ModuleDict({"wide": nn.Linear(64, 64), "thin": nn.Linear(64, 3), "one": nn.Linear(1, 64)})
    model.update({"first": nn.Linear(64, 64), "second": nn.Linear(64, 64)})
    model["second"].weight = model["first"].weight
    report = fw.apply(model, InRank())
    assert isinstance(model["wide"], LowRankLinear) and isinstance(model["thin"], nn.Linear)
    assert {row[0] for row in report.section("Left dense").rows} == {"thin", "one", "first", "second"}
    assert model["second"].weight is model["first"].weight
    assert model["wide"].rank == 31  # the largest at which two factors are smaller: 31 * 128 < 64 * 64


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


def test_remove_leaves_frozen_what_the_user_froze_before_and_since():
    model = causal_model("llama with biases")
    model.model.embed_tokens.requires_grad_(False)
    model.model.layers[0].self_attn.q_proj.bias.requires_grad_(False)
    model.model.layers[1].mlp.up_proj.weight.requires_grad_(False)
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    frozen = model.model.layers[1].mlp.up_proj.weight.clone()
    report = fw.apply(model, InRank(**FAST))

    assert type(model.model.layers[1].mlp.up_proj) is nn.Linear  # new factors would have replaced what was to stay
    assert "its weight is frozen" in str(report.section("Left dense").rows)
    model.model.norm.requires_grad_(False)
    fw.remove(model, InRank(**FAST))

    before["model.norm.weight"] = False
    assert before == {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert torch.equal(model.model.layers[1].mlp.up_proj.weight, frozen)


def test_a_frozen_base_beside_trained_factors_trains_again_after_remove():
    model = causal_model("llama")
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    method = InRank(**FAST, keep_w0=True)
    fw.apply(model, method)
    fw.remove(model, method)
    assert before == {name: parameter.requires_grad for name, parameter in model.named_parameters()}


def test_quantised_and_frozen_models_are_told_why_nothing_can_grow():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model = causal_model("llama")
    for layer in model.model.layers:
        for parent in (layer.self_attn, layer.mlp):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(parent, name, bitsandbytes.nn.Linear4bit(child.in_features, child.out_features, bias=False))
    with pytest.raises(ConfigError, match="q_proj stays dense: Linear4bit is no plain linear layer.*without quantis"):
        fw.apply(model, InRank(**FAST))
    with pytest.raises(ConfigError, match="its weight is frozen"):
        fw.apply(causal_model("llama").requires_grad_(False), InRank(**FAST))


def test_a_growing_layer_that_another_method_wrapped_is_named():
    model = causal_model("llama")
    method = InRank(**FAST)
    fw.apply(model, method)
    model.model.layers[0].mlp.up_proj = nn.Sequential(model.model.layers[0].mlp.up_proj)
    with pytest.raises(ConfigError, match=r"'model\.layers\.0\.mlp\.up_proj' is a Sequential now"):
        method.freeze(model)

"""No code that knows nothing of int8 weights writes into a handle, whose shape has no memory behind it."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.optim.adamw import adamw
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from featherweight.errors import ConfigError
from featherweight.methods.int8 import Int8
from featherweight.methods.method import apply, remove
from featherweight.optim import AdamW, GaLoreAdamW
from featherweight.quant import foreign_write
from featherweight.quant.foreign_write import ValuelessTensor


def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 48, bias=False), nn.Linear(48, 64))
    apply(model, Int8())
    model(torch.randn(4, 64)).square().mean().backward()
    return model


def bitsandbytes(name):
    return lambda parameters: getattr(pytest.importorskip("bitsandbytes").optim, name)(parameters)


def adafactor(parameters):
    return pytest.importorskip("transformers").Adafactor(parameters)


def galore_torch(parameters):
    matrices = {"params": [p for p in parameters if p.ndim == 2], "rank": 8, "update_proj_gap": 2}
    matrices |= {"scale": 1.0, "proj_type": "std"}
    return pytest.importorskip("galore_torch").GaLoreAdamW([matrices], no_deprecation_warning=True)


FOREIGN = {
    "adamw": torch.optim.AdamW,
    "adamw foreach": lambda p: torch.optim.AdamW(p, foreach=True),
    "adamw fused": lambda p: torch.optim.AdamW(p, fused=True),
    "adamw for loop": lambda p: torch.optim.AdamW(p, foreach=False),
    "sgd fused": lambda p: torch.optim.SGD(p, fused=True),
    "sgd": torch.optim.SGD,
    "adagrad fused": lambda p: torch.optim.Adagrad(p, fused=True),
    "muon": lambda p: torch.optim.Muon([one for one in p if one.ndim == 2]),
    "rprop": torch.optim.Rprop,
    "bitsandbytes 8-bit": bitsandbytes("AdamW8bit"),
    "bitsandbytes 32-bit": bitsandbytes("AdamW32bit"),
    "bitsandbytes lion": bitsandbytes("Lion8bit"),
    "adafactor": adafactor,
    "galore-torch": galore_torch,
}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("barrier", ["hook", "tensor"])
def test_a_foreign_optimizer_is_refused_by_each_barrier_alone_and_nothing_is_overwritten(name, barrier, monkeypatch):
    # Mutation: without both barriers a fused kernel writes 12 KB beyond 4 bytes, and the process dies.
    model = network()
    codes = [layer.weight_codes.clone() for layer in model]
    neighbours = [torch.full((1,), 7.0) for _ in range(1000)]
    optimizer = FOREIGN[name](list(model.parameters()))
    if barrier == "tensor":
        monkeypatch.setattr(foreign_write.Optimizer, "writes_int8_weights", True, raising=False)  # the hook passes all
    else:
        monkeypatch.setattr(foreign_write, "_refuse_write", lambda *_: pytest.fail("the hook let the step begin"))
    with pytest.raises(ConfigError, match="int8 weight"):
        optimizer.step()
    assert all(torch.equal(before, layer.weight_codes) for before, layer in zip(codes, model, strict=True))
    assert all(float(one) == 7 for one in neighbours)


def test_a_step_that_computes_its_gradients_in_a_closure_is_refused():
    model = network()
    model.zero_grad()

    def closure():
        loss = model(torch.ones(4, 64)).square().mean()
        loss.backward()
        return loss

    for optimizer in (torch.optim.LBFGS(model.parameters()), torch.optim.AdamW(model.parameters(), fused=True)):
        with pytest.raises(ConfigError, match="int8 weight"):
            optimizer.step(closure)


def test_a_step_that_no_hook_sees_is_refused():
    class Bare(torch.optim.Optimizer):
        def __init__(self, params):
            self.param_groups, self.defaults, self.state = [{"params": list(params)}], {}, {}

        def step(self, closure=None):
            torch._foreach_add_([p for p in self.param_groups[0]["params"] if p.ndim == 2], 1.0)

    optimizer = Bare(network().parameters())
    with pytest.raises(ConfigError, match="_foreach_add_"), torch.no_grad():
        optimizer.step()


WRITES = {
    "in place": lambda p, v: p.add_(v),
    "operator": lambda p, v: p.__iadd__(v),
    "item": lambda p, v: p.__setitem__(0, 1.0),
    "row": lambda p, v: p[0].fill_(1.0),
    "data": lambda p, v: p.data.copy_(v),
    "view": lambda p, v: p.detach().view(-1)[:3].zero_(),
    "transposed": lambda p, v: p.t().mul_(2),
    "chunk": lambda p, v: p.chunk(2)[1].zero_(),
    "out": lambda p, v: torch.add(v, v, out=p),
    "out of data": lambda p, v: torch.mul(v, v, out=p.data),
    "list": lambda p, v: torch._foreach_mul_([p], 2.0),
    "list of data": lambda p, v: torch._foreach_lerp_([v.clone(), p.data], [v, v], 0.5),
    "initialisation": lambda p, v: nn.init.normal_(p),
    "operator of the dispatcher": lambda p, v: torch.ops.aten.add_.Tensor(p, v),
    "operators of the dispatcher": lambda p, v: torch.ops.aten.mul_(p.data, v),
    "out of the dispatcher": lambda p, v: torch.ops.aten.add.out(v, v, out=p),
    "fused": lambda p, v: adamw(
        [p.data], [v], [v.clone()], [v.clone()], [], [torch.tensor(1.0)], fused=True, amsgrad=False,
        beta1=0.9, beta2=0.9, lr=0.1, weight_decay=0.0, eps=1e-8, maximize=False,
    ),
    "address": lambda p, v: p.data_ptr(),
    "address of a view": lambda p, v: p.detach()[1:].data_ptr(),
    "offloading": lambda p, v: p.to("meta"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITES)
def test_writing_into_a_handle_or_a_view_of_it_is_refused(name):
    handle = network()[0].weight
    with torch.no_grad(), pytest.raises(ConfigError, match="handle"):
        WRITES[name](handle, torch.ones(handle.shape))


def test_a_custom_operator_that_says_it_writes_is_refused():
    library = torch.library.Library("featherweight_test", "DEF")
    library.define("overwrite(Tensor x, Tensor(a!) y) -> ()")
    library.impl("overwrite", lambda x, y: y.add_(x), "CPU")
    handle = network()[0].weight
    for operator in (torch.ops.featherweight_test.overwrite, torch.ops.featherweight_test.overwrite.default):
        with pytest.raises(ConfigError, match="overwrite"):
            operator(torch.ones(1), handle)


def test_accelerate_prepares_int8_models_and_is_told_that_it_cannot_dispatch_or_offload_them(tmp_path):
    import accelerate

    inputs = torch.ones(2, 64)
    model = network()
    expected = model(inputs)
    optimizer = AdamW(model.parameters())
    prepared, stepping = accelerate.Accelerator(cpu=True).prepare(model, optimizer)
    assert torch.equal(prepared(inputs), expected)
    prepared(inputs).square().sum().backward()
    stepping.step()
    assert accelerate.infer_auto_device_map(network(), max_memory={"cpu": "1GB"}) == {"": "cpu"}
    names = [name for name, _ in network().named_children()]
    for place in (
        lambda model: accelerate.dispatch_model(model, {"": "cpu"}, force_hooks=True),
        lambda model: accelerate.dispatch_model(
            model, dict.fromkeys(names, "disk"), main_device="cpu", offload_dir=tmp_path, force_hooks=True
        ),
        lambda model: accelerate.cpu_offload(model, torch.device("cpu")),
    ):
        with pytest.raises(ConfigError, match="int8 weight: .*dispatch_model and offloading, need that too"):
            place(network())(inputs)


@pytest.mark.parametrize("head", [{}, {"modules_to_save": ["lm_head"]}])
def test_peft_puts_adapters_beside_int8_weights_tied_ones_included(head, tmp_path):
    import peft
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2, vocab_size=64,
        tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    apply(model, Int8(embeddings=True))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*tie", UserWarning)  # PEFT's advice about merging tied heads
        model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"], **head))
    tokens = torch.randint(0, 64, (2, 8))
    model(input_ids=tokens, labels=tokens).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    model.save_pretrained(tmp_path)


def test_reading_gives_nan_and_results_are_ordinary_tensors():
    handle = network()[0].weight
    other = torch.zeros(handle.shape)
    for result in (handle + 1, other.add_(handle.data), torch.cat([handle.data, other]), handle.detach().clone()):
        assert type(result) is torch.Tensor and bool(result.isnan().any())
        result.detach().zero_()
    assert type(handle.data) is ValuelessTensor and type(torch.zeros_like(handle)) is torch.Tensor
    assert type(handle.grad) is torch.Tensor


def test_frozen_weights_may_stand_in_the_groups_of_any_optimizer():
    model = network()
    model[0].weight.requires_grad_(False).grad = None
    model[1].weight.requires_grad_(False).grad = None
    before = model[1].bias.clone()
    torch.optim.AdamW(model.parameters(), fused=True).step()
    assert not torch.equal(before, model[1].bias)


@pytest.mark.parametrize("average", [None, get_ema_multi_avg_fn(0.9)])
def test_an_average_of_int8_weights_is_refused_in_a_sentence(average):
    model = network()
    averaged = AveragedModel(model, multi_avg_fn=average)
    with pytest.raises(ConfigError, match=r"averages of weights.*|fw\.remove"):
        averaged.update_parameters(model)
        averaged.update_parameters(model)


def test_norms_clipping_and_scalers_see_gradients_as_before():
    model = network()
    expected = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    assert torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3).isclose(expected)
    assert torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]) < 1.1e-3
    optimizer, scaler = GaLoreAdamW(model.parameters(), rank=8), torch.amp.GradScaler("cpu")
    before = model[0].weight_codes.clone()
    scaler.scale(model(torch.randn(4, 64)).square().mean()).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    assert not torch.equal(before, model[0].weight_codes)
    foreign = torch.optim.AdamW(model.parameters(), fused=True)
    with pytest.raises(ConfigError, match="int8 weight"):
        torch.amp.GradScaler("cpu", enabled=False).step(foreign)


def test_the_default_trainer_and_a_prepared_optimizer_are_refused(tmp_path):
    accelerate = pytest.importorskip("accelerate")
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, vocab_size=40))
    apply(model, Int8())
    rows = [{"input_ids": row, "labels": row} for row in torch.randint(0, 40, (4, 6))]
    options = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "save_strategy": "no", "max_steps": 1}
    trainer = transformers.Trainer(model, transformers.TrainingArguments(str(tmp_path), **options), train_dataset=rows)
    with pytest.raises(ConfigError, match="AdamW.step: .* is an int8 weight"):
        trainer.train()
    prepared = accelerate.Accelerator(cpu=True).prepare(torch.optim.AdamW(model.parameters()))
    model(rows[0]["input_ids"][None], labels=rows[0]["labels"][None]).loss.backward()
    with pytest.raises(ConfigError, match="is an int8 weight"):
        prepared.step()


def test_our_optimizers_write_codes_and_copies_keep_their_guard():
    model = network()
    twin = copy.deepcopy(model)
    before = twin[0].weight_codes.clone()
    twin(torch.ones(2, 64)).sum().backward()
    AdamW(twin.parameters(), lr=0.1).step()
    assert not torch.equal(before, twin[0].weight_codes)
    with pytest.raises(ConfigError, match="handle"), torch.no_grad():
        twin[0].weight.zero_()
    remove(twin, Int8())
    torch.optim.AdamW(twin.parameters(), fused=True).step()
    assert type(twin[0].weight) is nn.Parameter and twin[0].weight.data_ptr()

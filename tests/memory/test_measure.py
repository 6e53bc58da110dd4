import json

import pytest
import torch
from torch import nn

import featherweight as fw
from featherweight.errors import ConfigError, DeviceError
from featherweight.memory.ledger import CATEGORIES
from featherweight.memory.measure import measure_memory


def small_model():
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.1, generator=generator)
    return model


def one_step(model, optimizer):
    model(torch.ones(8, 16)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def llama(generator):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=172,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
    )
    return reinitialised(LlamaForCausalLM(config), generator)


def gpt2(generator):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=512, n_embd=64, n_layer=3, n_head=4, n_positions=128, bos_token_id=0, eos_token_id=0, pad_token_id=0
    )
    return reinitialised(GPT2LMHeadModel(config), generator)


def reinitialised(model, generator):
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.02, generator=generator)
    return model


@pytest.mark.parametrize("build", [llama, gpt2])
def test_peak_of_language_models_agrees_with_torch_mem_tracker(build):
    from torch.distributed._tools.mem_tracker import MemTracker

    generator = torch.Generator().manual_seed(0)
    token_ids = torch.randint(0, 512, (4, 64), generator=generator)

    def step(model, optimizer):
        model(input_ids=token_ids, labels=token_ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    model = build(generator)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    with fw.measure_memory(model, optimizer) as memory:
        step(model, optimizer)

    model = build(generator)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    reference = MemTracker()
    reference.track_external(model, optimizer, token_ids)
    with reference:
        step(model, optimizer)
    (peak,) = reference.get_tracker_snapshot("peak").values()
    # Measured: equal to the byte, in every category. 0.1 % is for other versions of transformers, whose small tensors
    # from before the context the two may see at different moments.
    assert memory.peak_bytes == pytest.approx(peak["Total"], rel=1e-3)
    assert memory.peak_by_category["weights"] == peak["Parameter"]


def test_categories_add_up_and_the_formulas_hold_to_the_byte():
    model = small_model()
    optimizer = torch.optim.AdamW(model.parameters())
    weights = sum(weight.nbytes for weight in model.parameters())
    with measure_memory(model, optimizer) as memory:
        for _ in range(3):
            one_step(model, optimizer)
        assert memory.live_by_category["gradients"] == 0  # zero_grad sets to None
    assert memory.live_by_category["weights"] == weights
    assert memory.live_by_category["optimizer_state"] == 2 * weights + 4 * 4  # four parameters, one fp32 counter each
    assert memory.max_by_category["gradients"] == weights
    assert sum(memory.live_by_category.values()) == memory.live_bytes
    assert sum(memory.peak_by_category.values()) == memory.peak_bytes
    assert all(memory.peak_by_category[name] <= memory.max_by_category[name] for name in CATEGORIES)


def test_reset_peak_separates_warm_up_from_steady_state():
    model = small_model()
    optimizer = torch.optim.AdamW(model.parameters())
    with measure_memory(model, optimizer) as memory:
        big = torch.zeros(100_000)
        del big
        one_step(model, optimizer)
        assert memory.peak_bytes > 400_000
        memory.reset_peak()
        one_step(model, optimizer)
    assert memory.peak_bytes < 400_000
    assert memory.max_by_category["other"] < 400_000


def test_measurement_without_a_step_has_no_activations():
    model = small_model()
    with measure_memory(model) as memory:
        pass
    weights = sum(weight.nbytes for weight in model.parameters())
    assert memory.peak_by_category == {**dict.fromkeys(CATEGORIES, 0), "weights": weights}
    assert memory.peak_bytes == memory.live_bytes == weights
    assert str(memory.report())


def test_report_and_dictionary_hold_the_same_figures():
    model = small_model()
    optimizer = torch.optim.AdamW(model.parameters())
    with measure_memory(model, optimizer) as memory:
        one_step(model, optimizer)
    table = memory.report().section("Memory by category")
    assert [row[0] for row in table.rows] == [*CATEGORIES, "total"]
    for name, at_peak, own_maximum in table.rows[:-1]:
        assert at_peak * 2**20 == memory.peak_by_category[name]  # a division by a power of two is exact
        assert own_maximum * 2**20 == memory.max_by_category[name]
    assert table.rows[-1][1] * 2**20 == memory.peak_bytes

    figures = json.loads(json.dumps(memory.to_dict()))
    assert figures["peak_by_category"] == memory.peak_by_category
    assert figures["top_allocations"][0]["size_bytes"] == memory.top_allocations(1)[0].size_bytes
    assert figures["allocator_peak_bytes"] is None and figures["device"] == "cpu"


def test_accelerate_wrapped_model_and_optimizer_are_measured():
    from accelerate import Accelerator

    model = small_model()
    optimizer = torch.optim.AdamW(model.parameters())
    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(model, optimizer)
    with measure_memory(model, optimizer) as memory:
        accelerator.backward(model(torch.ones(8, 16)).sum())
        optimizer.step()
    weights = sum(weight.nbytes for weight in model.parameters())
    # Mutation: the wrapper's own step hooks never run, so the state would be "other" or temporaries at the peak.
    assert memory.peak_phase == "optimizer"
    assert memory.peak_by_category["optimizer_state"] == 2 * weights + 4 * 4


def test_measurements_are_not_nested():
    model = small_model()
    with measure_memory(model) as outer:
        with pytest.raises(ConfigError, match="one measurement at a time"):
            with measure_memory(model):
                pass
        model(torch.ones(8, 16)).sum().backward()
    weights = sum(weight.nbytes for weight in model.parameters())
    assert outer.max_by_category["gradients"] == weights  # the outer one was not disturbed


def test_wrong_arguments_are_named():
    model = small_model()
    with pytest.raises(ConfigError, match="measure_memory: model=list is no module"):
        measure_memory([model])
    with pytest.raises(ConfigError, match="measure_memory: optimizer=Sequential is no optimizer"):
        measure_memory(model, model)
    with pytest.raises(DeviceError, match="device='gpu' is unknown"):
        measure_memory(model, device="gpu")
    with pytest.raises(DeviceError, match="device=meta holds no memory"):
        measure_memory(nn.Linear(2, 2, device="meta"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_missing_gpu_is_named():
    with pytest.raises(DeviceError, match="device=cuda holds no memory here"):
        measure_memory(small_model(), device="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_categories_agree_with_the_cuda_allocator():
    # The workspaces of cuBLAS (8 to 32 MiB) belong to the allocator's figure and no tracker sees them: a first step
    # sets them up, so that they can be taken off.
    device = torch.device("cuda")
    model = nn.Sequential(*[nn.Linear(2048, 2048) for _ in range(4)], nn.Linear(2048, 8192)).to(device)
    optimizer = torch.optim.AdamW(model.parameters())
    x = torch.randn(4096, 2048, device=device)

    def step():
        model(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    torch.cuda.synchronize()
    with measure_memory(model, optimizer) as memory:
        memory_before = torch.cuda.memory_allocated(device)
        hidden_bytes = memory_before - memory.live_bytes - x.nbytes
        step()
        torch.cuda.synchronize()
    # 2 %: the agreement that the planner promises for allocated memory
    assert memory.peak_bytes == pytest.approx(memory.allocator_peak_bytes - hidden_bytes, rel=0.02)
    assert memory.reserved_peak_bytes >= memory.allocator_peak_bytes

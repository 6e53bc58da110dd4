import os
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from featherweight.memory.cost import StepCost
from featherweight.memory.simulate import SimulatedTensors, simulation
from featherweight.memory.tracker import StorageTracker
from featherweight.simulated import SimulatedDevice, counting_only, simulated_device
from featherweight.tiles import tiles

CPU, CUDA = SimulatedDevice("cpu"), SimulatedDevice("cuda")


# -- hand counts -------------------------------------------------------------------------------------------------------


class Mlp(nn.Module):
    """y = W2 relu(W1 x); (B, D) -> (B, D) with F features between."""

    def __init__(self, width, features, checkpointed):
        super().__init__()
        self.up = nn.Linear(width, features, bias=False)
        self.down = nn.Linear(features, width, bias=False)
        self.checkpointed = checkpointed

    def forward(self, x):
        return checkpoint(self._branch, x, use_reentrant=False) if self.checkpointed else self._branch(x)

    def _branch(self, x):
        return self.down(torch.relu(self.up(x)))


def train_mlp(batch, width, features, *, checkpointed, momentum, rounding=1):
    """Return bytes alive between the passes, and the peaks of forward, backward and optimizer, of a first step."""
    model = Mlp(width, features, checkpointed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum, foreach=False)
    x = torch.ones(batch, width)
    with StorageTracker(model, optimizer, rounding=rounding) as tracker:
        loss = model(x).sum()
        between, forward = tracker.live_bytes, tracker.peak_bytes
        tracker.reset_peak()
        loss.backward()
        backward = tracker.peak_bytes
        tracker.reset_peak()
        optimizer.step()
        return between, forward, backward, tracker.peak_bytes


# Bytes: W of both weights together, V of one; X of x, and of y; H of h = W1 x, and of r = relu(h).
#   forward: W x h r, then W x r y loss             (h is gone after relu, which keeps its result; linear its input)
#   between: W x r loss                             checkpointed: W x loss
#   a checkpoint makes the same storages, but r is gone when the loss is made
#   backward, down: r, its gradient dr, dW2
#             relu: r, dr, dh, dW2                  the largest where activations are
#             up:   dh, dW2, dW1                    the largest where weights are
#   checkpointed, before down: x h r, without any gradient
#   optimizer: W, gradients W, momentum W, x
@pytest.mark.parametrize("simulated", [False, True])
@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("rounding", [1, 512])
@pytest.mark.parametrize(("batch", "width", "features"), [(256, 16, 64), (8, 128, 256), (8, 256, 64)])
def test_peaks_of_an_mlp_are_the_enumerated_bytes(simulated, checkpointed, rounding, batch, width, features):
    V = 4 * width * features
    W, X, H = 2 * V, 4 * batch * width, 4 * batch * features
    loss = seed = max(4, rounding)  # all others are multiples of 512
    with simulation(CPU) if simulated else nullcontext():
        between, forward, backward, optimizer = train_mlp(
            batch, width, features, checkpointed=checkpointed, momentum=0.9, rounding=rounding
        )
    assert forward == W + X + max(2 * H, H + X + (0 if checkpointed else loss))
    assert between == W + X + loss + (0 if checkpointed else H)
    assert backward == W + X + max(2 * H + V, 3 * H + V, H + 2 * V) + loss + seed
    assert optimizer == W + W + W + X + loss


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_simulation_has_the_bytes_of_a_real_run_for_awkward_shapes_too(checkpointed):
    real = train_mlp(3, 7, 11, checkpointed=checkpointed, momentum=0.9)
    with simulation(CPU):
        assert train_mlp(3, 7, 11, checkpointed=checkpointed, momentum=0.9) == real


def attention_bytes(query_heads, key_heads, length, dtype, *, device=CUDA, mask=False, cost=None):
    """Return bytes that forward keeps, and what backward has besides them at its peak; B = 2, D = 64."""
    with simulation(device, cost):
        query, key, value = (
            torch.empty(2, heads, length, 64, dtype=dtype, requires_grad=True)
            for heads in (query_heads, key_heads, key_heads)
        )
        bias = torch.zeros(2, 1, length, length, dtype=dtype) if mask else None
        upstream = torch.empty(2, query_heads, length, 64, dtype=dtype)
        with StorageTracker() as tracker:
            output = F.scaled_dot_product_attention(
                query, key, value, attn_mask=bias, is_causal=not mask, enable_gqa=query_heads != key_heads
            )
            kept = tracker.live_bytes
            output.backward(upstream)
            assert query.grad.shape == query.shape and value.grad.shape == value.shape
            return kept, tracker.peak_bytes - kept


def test_flash_attention_keeps_its_output_and_one_float32_number_for_each_query():
    B, H, G, L, D = 2, 4, 2, 100, 64
    kept, backward = attention_bytes(H, G, L, torch.bfloat16)
    assert kept == 2 * B * H * L * D + 4 * B * H * L
    rounded = 128  # rows of its scratch are a multiple of this
    gradients = 2 * B * (H + 2 * G) * L * D
    scratch = 4 * B * H * rounded + 4 * B * rounded * H * D + 2 * (2 * B * H * L * D)  # keys' for each query head
    assert backward == gradients + scratch


def test_flash_attention_without_groups_sums_no_heads():
    B, H, L, D = 2, 4, 128, 64
    _, backward = attention_bytes(H, H, L, torch.bfloat16)
    assert backward == 3 * 2 * B * H * L * D + 4 * B * H * L + 4 * B * H * L * D


@pytest.mark.parametrize(("dtype", "mask"), [(torch.float32, False), (torch.bfloat16, True)])
def test_efficient_attention_serves_float32_and_masks_and_rounds_its_sums_to_32_queries(dtype, mask):
    B, H, L, D = 2, 4, 100, 64
    kept, backward = attention_bytes(H, H, L, dtype, mask=mask)
    assert kept == dtype.itemsize * B * H * L * D + 4 * B * H * 128
    assert backward == 3 * dtype.itemsize * B * H * L * D + 4 * B * H * L


@pytest.mark.parametrize(("dtype", "mask"), [(torch.float32, False), (torch.bfloat16, True)])
def test_grouped_queries_in_float32_or_with_a_mask_keep_all_scores(dtype, mask):
    B, H, G, L, D = 2, 4, 2, 128, 64
    kept, _ = attention_bytes(H, G, L, dtype, mask=mask)
    # Scaled queries and keys, repeated values, and the softmax of (B, H, L, L) scores: in float32 for all types.
    assert kept == 4 * (3 * B * H * L * D + B * H * L * L) + dtype.itemsize * B * H * L * D


def test_attention_of_a_simulated_cpu_is_that_of_this_machine():
    B, H, L, D = 2, 4, 128, 64
    kept, _ = attention_bytes(H, H, L, torch.float32, device=CPU)
    query = torch.ones(B, H, L, D, requires_grad=True)
    with StorageTracker() as tracker:
        output = F.scaled_dot_product_attention(query, query, query, is_causal=True)
        assert output.numel() and tracker.live_bytes == kept


# -- numbers -----------------------------------------------------------------------------------------------------------


def test_counters_keep_their_values():
    with simulation(CPU):
        step = torch.zeros((), dtype=torch.int64)
        for _ in range(3):
            step += 1
        due = torch.full((), 3, dtype=torch.int64)
        flags = torch.zeros(5, dtype=torch.bool)
        flags[2] = True
        assert step.item() == 3 and bool(step >= due) and not bool(step > due)
        assert flags.tolist() == [False, False, True, False, False] and int(flags.sum()) == 1
        due.copy_(step + 4)
        assert due.item() == 7


def test_questions_about_elements_get_the_answers_of_an_ordinary_step():
    with simulation(CPU):
        x = torch.zeros(100, 100)
        assert type(x) is FakeTensor
        norm = torch.linalg.vector_norm(x)
        assert norm.item() == 1.0 and bool(torch.isfinite(norm)) and bool(torch.isfinite(x).all())
        assert (x == 5).sum().item() == 1
        assert x.nonzero().shape == (0, 2)
        assert torch.tensor(2.5).item() == 2.5  # a number that the code itself wrote


def test_tensors_have_sizes_and_no_memory():
    with simulation(CUDA):
        x = torch.zeros(1 << 20, 1 << 20)
        y = (x @ x.T).relu_().to(torch.bfloat16)
        assert y.nbytes == 2 << 40 and y.shape == (1 << 20, 1 << 20)
        assert y.device.type == "cpu"  # a build without CUDA has no other device


SHAPES = {
    "a view": lambda x: x.view(-1)[3:9],
    "a transpose": lambda x: x.t().contiguous(),
    "a conversion": lambda x: x.to(torch.bfloat16),
    "a comparison": lambda x: x > 0,
    "a promotion": lambda x: x.bfloat16() * x,
    "a product": lambda x: x @ x.t(),
    "a reduction": lambda x: x.amax(1, keepdim=True),
    "a norm": lambda x: torch.linalg.vector_norm(x, dtype=torch.float64),
    "in place": lambda x: x.clone().mul_(2).add_(x),
    "out": lambda x: torch.mul(x, 2, out=torch.empty(4, 8)),
    "a mask": lambda x: x.masked_fill(x > 1, 0.0),
    "rows": lambda x: x.index_select(0, torch.tensor([1, 1, 3])),
    "a list": lambda x: torch.cat([x, x]),
    "a factory": lambda x: torch.arange(0, 10, 3),
    "like": lambda x: torch.zeros_like(x, dtype=torch.uint8),
    "new": lambda x: x.new_empty((3, 2)).zero_(),
    "codes": lambda x: (x.to(torch.uint8) >> 4) & 3,
    "a singular value": lambda x: torch.linalg.svd(x, full_matrices=False)[1],
    "an orthogonal basis": lambda x: torch.linalg.qr(x)[0],
    "a resize": lambda x: x.clone().resize_(2, 3),
    "where": lambda x: torch.where(x > 0, x, x.double()),
    "a complex one": lambda x: torch.fft.rfft(x),
    "a stack": lambda x: torch.stack([x, x.t().reshape(4, 8)], dim=1),
    "a mean": lambda x: x.mean(0, keepdim=True),
    "a sum of whole numbers": lambda x: x.to(torch.int32).sum(),
    "a copy of one number": lambda x: x[:1, :1].expand(4, 8).clone(),
    "a copy by columns": lambda x: x.t().clone(),
    "rows of a table": lambda x: F.embedding(torch.tensor([[0, 3], [1, 1]]), x),
    "whole and 1": lambda x: x.to(torch.int32) + 1,
    "whole and 1.0": lambda x: x.to(torch.int32) + 1.0,
    "truth and 1": lambda x: (x > 0) + 1,
    "truth and truth": lambda x: (x > 0) + True,
}


@pytest.mark.parametrize("name", SHAPES)
def test_results_have_the_shape_the_type_the_strides_and_the_storage_of_real_ones(name):
    def facts():
        with StorageTracker() as tracker:
            x = torch.ones(4, 8)
            result = SHAPES[name](x)
            return (
                (result.shape, result.dtype, result.stride(), result.storage_offset()),
                result.untyped_storage().nbytes(),
                tracker.live_bytes,
                tracker.peak_bytes,
            )

    real = facts()
    with simulation(CPU):
        assert facts() == real
        assert facts() == real  # as it was before


def test_values_that_are_equal_and_of_other_types_are_not_mixed_up():
    with simulation(CPU):
        whole = torch.ones(4, 8, dtype=torch.int32)
        assert [(whole * factor).dtype for factor in (1, 1.0, True, 1)] == [torch.int32, torch.float32] + [
            torch.int32
        ] * 2


def test_what_is_remembered_depends_on_the_default_type():
    results = []
    for dtype in (torch.float32, torch.float64, torch.float32):
        torch.set_default_dtype(dtype)
        try:
            with simulation(CPU):
                results.append((torch.ones(300, dtype=torch.int64) / torch.ones(300, dtype=torch.int64)).dtype)
        finally:
            torch.set_default_dtype(torch.float32)
    assert results == [torch.float32, torch.float64, torch.float32]


def test_a_copy_of_a_sparse_tensor_is_sparse_the_second_time_too():
    with simulation(CPU):
        indices, values = torch.empty((2, 0), dtype=torch.int64), torch.empty(0)
        for _ in range(2):
            empty = torch.sparse_coo_tensor(indices, values, (300, 2), check_invariants=False)
            assert empty.clone().layout is torch.sparse_coo


def test_the_tracker_of_a_simulation_sees_what_one_around_plain_fake_tensors_sees():
    def events(mode):
        with mode:
            model = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 8))
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
            with StorageTracker(model, optimizer, keep_history=True) as tracker:
                for _ in range(2):
                    hidden = checkpoint(model, torch.ones(16, 64), use_reentrant=False)
                    F.cross_entropy(hidden, torch.zeros(16, dtype=torch.int64)).backward()
                    torch.linalg.svd(model[0].weight.grad)
                    optimizer.step()
                    optimizer.zero_grad()
            return tracker.timeline().events

    seen = events(simulation(CPU))
    assert seen == events(FakeTensorMode(allow_non_fake_inputs=True)) and len(seen) > 100


# -- what remains ------------------------------------------------------------------------------------------------------


def run_alone(program):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.split()


TABLES = """
import torch
from featherweight.memory.simulate import simulation
from featherweight.optim import AdamW, GaLoreAdamW, QGaLoreAdamW
from featherweight.quant.blockwise import dynamic_table
from featherweight.simulated import SimulatedDevice

def step(kind, **options):
    weight = torch.nn.Parameter(torch.linspace(-1, 1, 128 * 128).view(128, 128))
    optimizer = kind([{"params": [weight], "rank": 8}] if "Ga" in kind.__name__ else [weight], lr=0.1, **options)
    for _ in range(2):
        weight.grad = weight.detach().sin()
        optimizer.step()
    return weight

kinds = [(AdamW, {"state_bits": 8}), (AdamW, {"state_bits": 4}), (GaLoreAdamW, {"state_bits": 8}), (QGaLoreAdamW, {})]
if SIMULATE:
    for device in ("cuda", "cpu"):
        with simulation(SimulatedDevice(device)):
            for kind, options in kinds:
                step(kind, **options)
for kind, options in kinds:
    print(repr(step(kind, **options).double().sum().item()))
print(type(dynamic_table(8, signed=True).values).__name__)
"""


def test_tables_that_are_first_used_in_a_simulation_are_real_ones(capsys):
    # In a process of its own: the tables are made once. Here they are real, whoever used them before.
    after = run_alone(TABLES.replace("SIMULATE", "True"))
    exec(TABLES.replace("SIMULATE", "False"), {})
    assert after == capsys.readouterr().out.split() and after[-1] == "Tensor"


def test_nothing_of_a_simulation_is_left_even_after_an_error():
    from transformers import masking_utils

    before = (F.scaled_dot_product_attention, masking_utils.find_packed_sequence_indices)
    with pytest.raises(ZeroDivisionError), simulation(CUDA):
        assert F.scaled_dot_product_attention is not before[0] and simulated_device() == CUDA
        raise ZeroDivisionError
    assert (F.scaled_dot_product_attention, masking_utils.find_packed_sequence_indices) == before
    assert simulated_device() is None and type(torch.ones(3)) is torch.Tensor


# -- language models ---------------------------------------------------------------------------------------------------


SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 512}
DECODERS = {
    "llama": {"num_key_value_heads": 2, "intermediate_size": 176},
    "gpt2": {"n_positions": 128, "bos_token_id": 0, "eos_token_id": 0},
    "qwen3": {"num_key_value_heads": 2, "intermediate_size": 176, "head_dim": 16},
    "mistral": {"num_key_value_heads": 2, "intermediate_size": 176},
    "opt": {"ffn_dim": 256, "word_embed_proj_dim": 64},
}


def decoder(model_type, **changes):
    from transformers import AutoConfig, AutoModelForCausalLM

    options = {**SIZES, **DECODERS[model_type], "max_position_embeddings": 128, **changes}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **options)).train()


def train_decoder(model, optimizer, token_ids):
    model(input_ids=token_ids, labels=token_ids, use_cache=False).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("model_type", DECODERS)
def test_peak_of_fake_language_models_agrees_with_torch_mem_tracker(model_type):
    from torch.distributed._tools.mem_tracker import MemTracker

    def build():
        model = decoder(model_type)
        optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
        return model, optimizer, torch.zeros((4, 64), dtype=torch.int64)

    with FakeTensorMode(allow_non_fake_inputs=True):
        model, optimizer, token_ids = build()
        with StorageTracker(model, optimizer) as tracker:
            train_decoder(model, optimizer, token_ids)
        model, optimizer, token_ids = build()
        reference = MemTracker()
        reference.track_external(model, optimizer, token_ids)
        with reference:
            train_decoder(model, optimizer, token_ids)
    (peak,) = reference.get_tracker_snapshot("peak").values()
    # 0.1 %: the two see small tensors from before the context at different moments.
    assert tracker.peak_bytes == pytest.approx(peak["Total"], rel=1e-3)
    assert tracker.peak_by_category["weights"] == peak["Parameter"]


@pytest.mark.parametrize("model_type", DECODERS)
def test_a_simulated_decoder_has_the_peak_of_a_real_one(model_type):
    def peaks():
        model = decoder(model_type)
        optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
        with StorageTracker(model, optimizer) as tracker:
            for _ in range(2):
                train_decoder(model, optimizer, torch.zeros((4, 64), dtype=torch.int64))
        return tracker.peak_by_category, tracker.max_by_category

    real = peaks()
    with simulation(CPU):
        assert peaks() == real


# -- cost --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_products_of_a_step_are_those_that_torch_counts_on_the_real_model(attention):
    token_ids = torch.zeros((2, 64), dtype=torch.int64)
    model = decoder("llama", attn_implementation=attention)
    with FlopCounterMode(display=False) as counter:
        train_decoder(model, torch.optim.SGD(model.parameters()), token_ids)
    cost = StepCost()
    with simulation(CPU, cost):
        model = decoder("llama", attn_implementation=attention)
        cost.clear()
        train_decoder(model, torch.optim.SGD(model.parameters()), torch.zeros((2, 64), dtype=torch.int64))
    assert dict(cost.flops) == {"float32": counter.get_total_flops()}
    weights = sum(weight.nbytes for weight in model.parameters())
    assert cost.moved_bytes > 3 * weights  # SGD alone reads weights and gradients and writes weights


def test_attention_of_a_gpu_costs_two_products_forward_and_five_backward():
    cost = StepCost()
    B, H, L, D = 2, 4, 128, 64
    attention_bytes(H, 2, L, torch.bfloat16, cost=cost)
    one_product = 2 * B * H * L * L * D
    assert dict(cost.flops) == {"bfloat16": 7 * one_product // 2}  # causal: half of the scores


def test_elementwise_work_counts_bytes_read_and_written_and_views_cost_nothing():
    cost = StepCost()
    with simulation(CPU, cost):
        x = torch.zeros(100, 100)
        cost.clear()
        y = x.t()[:50].unsqueeze(0)
        assert (cost.moved_bytes, cost.launches) == (0, 0)
        y = x + x
        assert (cost.moved_bytes, cost.launches) == (3 * 40_000, 1)
        y.mul_(x)
        assert (cost.moved_bytes, cost.launches) == (3 * 40_000 + 3 * 40_000, 2)
    assert not cost.flops


def work_in_tiles():
    x = torch.zeros(1000, 16)
    y = torch.empty_like(x)
    for start, stop in tiles(1000, 64):
        torch.mm(x[start:stop], torch.zeros(16, 16), out=y[start:stop])
        y[start:stop].add_(1.0)
    return y


def test_a_few_tiles_cost_what_all_of_them_do():
    costs = [StepCost(), StepCost()]
    with simulation(CPU, costs[0]):
        work_in_tiles()
    with SimulatedTensors(costs[1]):  # without a simulated device tiles are not left out
        work_in_tiles()
    assert costs[0] == costs[1]
    assert costs[0].flops["float32"] == 2 * 1000 * 16 * 16
    with counting_only(CPU):
        assert len(list(tiles(1000, 64))) == 3

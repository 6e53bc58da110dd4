import math

import pytest
import torch

from featherweight.errors import DeviceError
from featherweight.memory.benchmark import (
    BenchmarkSizes,
    Measured,
    context_of,
    measure_attention,
    measure_context,
    measure_copies,
    measure_elementwise,
    measure_gemm,
    measure_launch,
    measure_rates,
)

CPU = torch.device("cpu")
TINY = BenchmarkSizes(gemm=32, attention_tokens=8, elements=1024, copy_bytes=4096, launches=10, repeats=3, seconds=1e-5)


def is_a_rate(measured):
    return 0 < measured.low <= measured.value <= measured.high < math.inf


def test_every_benchmark_gives_a_rate_on_a_cpu():
    # Speeds of a shared machine say nothing; that they are numbers, and in order, can be checked.
    assert all(is_a_rate(measure_gemm(CPU, precision, TINY)) for precision in ("fp32", "tf32", "bf16", "fp16"))
    assert is_a_rate(measure_attention(CPU, "bf16", TINY))
    assert is_a_rate(measure_elementwise(CPU, TINY))
    assert all(is_a_rate(copy) for copy in measure_copies(CPU, TINY))
    assert is_a_rate(measure_launch(CPU, TINY))


def test_work_is_counted_as_the_counter_of_torch_counts_it(monkeypatch):
    from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

    import featherweight.memory.benchmark as benchmark

    monkeypatch.setattr(benchmark, "_timings", lambda run, device, sizes: [1.0])  # a second for everything
    with FlopCounterMode(display=False) as counter:
        torch.mm(torch.ones(32, 32), torch.ones(32, 32))
    assert measure_gemm(CPU, "fp32", TINY).value == counter.get_total_flops()

    shape = (4, 16, 8, 128)
    counted = sdpa_flop_count(shape, shape, shape) + sdpa_backward_flop_count(shape, shape, shape, shape)
    assert measure_attention(CPU, "fp32", TINY).value == counted

    assert measure_elementwise(CPU, TINY).value == 3 * 4 * 1024
    assert [copy.value for copy in measure_copies(CPU, TINY)] == [4096, 4096]
    assert measure_launch(CPU, TINY).value == 0.1


def test_all_benchmarks_leave_the_precision_of_float32_products_as_it_was():
    before = torch.get_float32_matmul_precision()
    rates = measure_rates(CPU, ("fp32", "tf32", "bf16"), TINY)
    assert torch.get_float32_matmul_precision() == before
    assert set(rates.gemm_flop_per_s) == {"fp32", "tf32", "bf16"}


def test_context_is_what_is_gone_besides_reserved_memory():
    probe = {"free_bare": 9_700, "free_loaded": 9_300, "reserved": 200}
    assert context_of(10_000, probe) == Measured(500, 300, 500)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_context_needs_a_gpu():
    with pytest.raises(DeviceError, match="measure_context: device=cpu is no available GPU"):
        measure_context(CPU)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_context_of_a_gpu_is_some_hundred_mib():
    context = measure_context(torch.device("cuda:0"))
    assert 100 * 2**20 < context.low <= context.value < 2**31

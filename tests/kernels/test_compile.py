"""Every kernel compiles to machine code without a GPU, without spilled registers and with the rounding of IEEE 754."""

import re
import subprocess
from functools import partial

import pytest
import torch

pytest.importorskip("triton")

from featherweight import kernels

if kernels.is_interpreted():
    pytest.skip("an interpreted kernel is not compiled", allow_module_level=True)

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from featherweight.kernels import adamw, int8_update, rounding
from featherweight.quant.storage import DynamicStorage

ARCHITECTURES = [*(pytest.param(number, marks=pytest.mark.slow) for number in (80, 86, 89)), 90]
ELEMENTS = 8
"""Of a thread, in each of these kernels."""


class Card:
    """What Triton asks of a driver before it compiles: a card that is not here, each kind under a number of its own."""

    def __init__(self, architecture):
        self.architecture = architecture

    def get_current_device(self):
        return self.architecture

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", self.architecture, 32)


@pytest.fixture
def compile_on(tmp_path, monkeypatch):
    """A function that makes the calls of a case and returns the kernels that their launches would compile."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))

    def compiled(case, architecture):
        binaries = []

        def compile_only(kernel, programs, *arguments, **constants):
            options = {**constants, "enable_fp_fusion": False}
            binaries.append(kernel.run(*arguments, grid=(programs,), warmup=True, **options))

        for module in (rounding, int8_update, adamw):
            monkeypatch.setattr(module, "launch", compile_only)
        monkeypatch.setattr(driver, "_active", Card(architecture))
        case()
        return binaries

    return compiled


def keys(span):
    return -5, 1 << 30


def round_case(count, *, is_update):
    out, source = torch.zeros(count).bfloat16(), torch.zeros(count)
    if is_update:
        rounding.add_direction_(out, source, alpha=-0.1, beta=1.0, offset=3, key_pair=keys)
    else:
        rounding.stochastic_round_(out, source, offset=3, key_pair=keys)


def int8_case(count, *, group_size, is_stochastic=True):
    codes, scale = torch.zeros(3, count, dtype=torch.int8), torch.zeros(3, -(-count // group_size))
    key_pair = keys if is_stochastic else None
    update = torch.zeros(3, count)
    int8_update.add_(codes, scale, update, group_size=group_size, beta=0.9, offset=3, key_pair=key_pair)


def adamw_case(count, *, in_codes, dtype, is_official):
    moments = (torch.zeros(count), torch.zeros(count))
    if in_codes:
        storages = [DynamicStorage(8, signed=True), DynamicStorage(8, signed=False)]
        parts = [(storage.zeros((count,), device="cpu"), storage.table) for storage in storages]
        moments = tuple(
            adamw.Codes(part["codes"], part["block_scale"], table.values, table.first_code, table.next_boundary)
            for part, table in parts
        )
    options = adamw.Options(0.9, 0.999, 1e-8, 1, is_official)
    if dtype is None:
        adamw.direction(torch.zeros(count), moments, options)
    else:
        weight = torch.zeros(count, dtype=dtype)
        adamw.step_(weight, moments, options, adamw.Write(weight.clone(), -0.1, 1.0, keys))


CASES = {
    "rounding": (partial(round_case, is_update=False), 0),
    "rounding, update": (partial(round_case, is_update=True), 1),
    **{f"int8, groups of {size}": (partial(int8_case, group_size=size), 1) for size in (64, 256, 300, 4096)},
    "int8, to nearest": (partial(int8_case, group_size=256, is_stochastic=False), 1),
    **{
        f"adamw, {'codes' if in_codes else 'dense'}, {dtype or 'direction'}{', official eps' if is_official else ''}": (
            partial(adamw_case, in_codes=in_codes, dtype=dtype, is_official=is_official),
            2 if dtype is None else 3,
        )
        for in_codes in (True, False)
        for dtype in (None, torch.float32, torch.bfloat16)
        for is_official in (True, False)
    },
}
"""Name -> calls for a number of elements, and sums that are fused with a product for each element."""


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", CASES)
def test_kernel_compiles_without_spills_and_rounds_as_ieee_754_says(name, architecture, compile_on, tmp_path):
    case, fused = CASES[name]
    for count in (4096, 4099, 1):  # Triton compiles variants for multiples of 16 and for 1
        for binary in compile_on(partial(case, count), architecture):
            used = resources(binary.asm["cubin"], tmp_path)
            # Sizes that are no multiple of 16 need more addresses; of these variants, two spill two to three registers.
            assert used["LOCAL"] == 0 and used["STACK"] <= (16 if count % 16 else 0), used
            code = binary.asm["ptx"]
            # The floor of a magnitude is the same if a subnormal counts as 0.
            assert set(re.findall(r"\S+\.ftz\S*", code)) <= {"cvt.rmi.ftz.f32.f32"}
            assert not re.findall(r"\S+\.approx\S*|div\.full\S*", code)
            assert len(re.findall(r"\bfma\.rn\.f32", code)) == ELEMENTS * fused


@pytest.mark.parametrize("name", ["rounding, update", "int8, groups of 256", f"adamw, dense, {torch.bfloat16}"])
def test_aligned_kernels_read_and_write_many_bytes_at_once(name, compile_on):
    (binary,) = compile_on(partial(CASES[name][0], 4096), 90)
    code = binary.asm["ptx"]
    # Mutation: a mask that the compiler cannot see to be the same for neighbours makes every access a single one.
    assert not re.findall(r"(?:ld|st)\.global\S*\.b(?:8|16)\b", code)
    assert re.findall(r"ld\.global\S*\.v4\.b32", code)


def test_no_variant_is_compiled_for_another_step_or_place(compile_on):
    def two_steps():
        out, source = torch.zeros(4096).bfloat16(), torch.zeros(4096)
        for offset, pair in ((0, (1, 16)), (3, (-7, 5)), (1, (0, -(2**31)))):
            rounding.stochastic_round_(out, source, offset=offset, key_pair=lambda span, pair=pair: pair)

    assert len({id(binary) for binary in compile_on(two_steps, 90)}) == 1


def resources(binary, folder):
    """Return what one program takes: registers of a thread, bytes of stack, shared and local memory."""
    path = folder / "kernel.cubin"
    path.write_bytes(binary)
    command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(path)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", text)}

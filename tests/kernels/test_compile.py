"""Every kernel compiles to machine code without a GPU, without spilled registers and with the rounding of IEEE 754."""

import re
import subprocess

import pytest

pytest.importorskip("triton")

from featherweight import kernels

if kernels.is_interpreted():
    pytest.skip("an interpreted kernel is not compiled", allow_module_level=True)

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from featherweight.kernels import adamw, int8_update, rounding

FLOATS = {"alpha", "beta", "beta_minus_1", "rest1", "beta2", "rest2", "correction1", "correction2_sqrt", "eps"}
SIZES = {"count", "columns", "groups"}
"""Multiples of 16 nearly always, for which Triton then compiles a variant of its own: the one that is fast."""
ARCHITECTURES = [*(pytest.param(number, marks=pytest.mark.slow) for number in (80, 86, 89)), 90]
ELEMENTS = 8
"""Of a thread, in each of these kernels."""


def adamw_tensors(*, in_codes, grad, out):
    kept, tables = ("*u8", ("scale", "values", "first", "next")) if in_codes else ("*fp32", ())
    tensors = {"grad": grad, "out": out, "exp_avg": kept, "exp_avg_sq": kept}
    for name in ("exp_avg", "exp_avg_sq"):
        for table in ("scale", "values", "first", "next"):
            tensors[f"{name}_{table}"] = "*u8" if in_codes and table == "first" else "*fp32"
    return tensors


def adamw_case(in_codes, writes, is_official):
    grad = out = "*bf16" if writes == "bfloat16" else "*fp32"
    constants = {"IN_CODES": in_codes, "IS_OFFICIAL": is_official, "WRITES": writes}
    constants |= {"G": adamw.BLOCKS, "B": adamw.BLOCK_SIZE}
    fused = 2 if writes == "direction" else 3
    return adamw.adamw_kernel, adamw_tensors(in_codes=in_codes, grad=grad, out=out), constants, 4, fused


def int8_case(group_size, is_stochastic):
    groups, length, warps = int8_update.shape_of_program(group_size)
    constants = {"GROUP_SIZE": group_size, "IS_STOCHASTIC": is_stochastic, "G": groups, "B": length}
    return int8_update.add_kernel, {"codes": "*i8", "scales": "*fp32", "update": "*fp32"}, constants, warps, 1


def rounding_case(is_update):
    constants = {"IS_UPDATE": is_update, "BLOCK": rounding.BLOCK}
    return rounding.write_kernel, {"out": "*bf16", "source": "*fp32"}, constants, 4, int(is_update)


CASES = {
    "rounding": rounding_case(False),
    "rounding, update": rounding_case(True),
    **{f"int8, groups of {size}": int8_case(size, True) for size in (64, 256, 300, 4096)},
    "int8, to nearest": int8_case(256, False),
    **{
        f"adamw, {'codes' if in_codes else 'dense'}, {writes}{', official eps' if is_official else ''}": adamw_case(
            in_codes, writes, is_official
        )
        for in_codes in (True, False)
        for writes in ("direction", "float32", "bfloat16")
        for is_official in (True, False)
    },
}
"""Name -> kernel, types of its tensors, constants, warps, sums that are fused with a product for each element."""


def compiled(case, architecture, *, is_aligned):
    """Compile as a launch on such a card would."""
    kernel, tensors, constants, warps, _ = case
    types = {
        name: "constexpr" if name in constants else tensors.get(name, "fp32" if name in FLOATS else "i32")
        for name in kernel.arg_names
    }
    aligned = [*tensors, *(SIZES.intersection(kernel.arg_names) if is_aligned else ())]
    hints = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(fn=kernel, signature=types, constexprs=constants, attrs=hints)
    options = {"num_warps": warps, "enable_fp_fusion": False}
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", CASES)
def test_kernel_compiles_without_spills_and_rounds_as_ieee_754_says(name, architecture, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for is_aligned in (True, False):
        binary = compiled(CASES[name], architecture, is_aligned=is_aligned)
        used = resources(binary.asm["cubin"], tmp_path)
        assert used["STACK"] == used["LOCAL"] == 0, used
        code = binary.asm["ptx"]
        # The floor of a magnitude is the same if a subnormal counts as 0.
        assert set(re.findall(r"\S+\.ftz\S*", code)) <= {"cvt.rmi.ftz.f32.f32"}
        assert not re.findall(r"\S+\.approx\S*|div\.full\S*", code)
        assert len(re.findall(r"\bfma\.rn\.f32", code)) == ELEMENTS * CASES[name][4]


def test_aligned_kernels_read_and_write_many_bytes_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for name in ("rounding, update", "int8, groups of 256", "adamw, dense, bfloat16"):
        code = compiled(CASES[name], 90, is_aligned=True).asm["ptx"]
        # Mutation: a mask that the compiler cannot see to be the same for neighbours makes every access a single one.
        assert not re.findall(r"(?:ld|st)\.global\S*\.b(?:8|16)\b", code)
        assert re.findall(r"ld\.global\S*\.v4\.b32", code)


def resources(binary, folder):
    """Return what one program takes: registers of a thread, bytes of stack, shared and local memory."""
    path = folder / "kernel.cubin"
    path.write_bytes(binary)
    command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(path)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", text)}

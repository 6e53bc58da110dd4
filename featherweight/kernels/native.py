"""AdamW and stochastic rounding on a CPU in one pass each: C code of this folder, compiled once on the user's machine.

PyTorch's operations read and write every element some thirty times for one step of AdamW with 8-bit moments. The
functions here do it once, block by block in the first-level cache, with the same bits: `library` compares them with
PyTorch's operations on this very machine before it lets them run. Where no C compiler is found, or a bit differs, the
twins go on to compute, and `status` says why. Twins: `AdamWRule` on moments of `featherweight.quant.storage`,
`add_direction_` of `featherweight.optim.step.weight_update`, `stochastic_round_`.

The compiled file lies in the user's cache folder (``$FEATHERWEIGHT_CACHE`` or ``~/.cache/featherweight``), named by a
hash of the source, the compiler and the processor. Nothing is compiled on import.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from featherweight import kernels, simulated
from featherweight.config.files import cache_folder, new_file
from featherweight.errors import ShapeError
from featherweight.kernels import KeyPair
from featherweight.kernels.arguments import Options, Write
from featherweight.tiles import tiles

SPAN_ELEMENTS = 1 << 24
"""Elements that share a pair of keys."""
BLOCK = 256
THREAD_BLOCKS = 256
"""Blocks that are worth a thread of their own."""
SOURCE = Path(__file__).with_name("native.c")
FLAGS = ("-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
_FLOAT32, _BFLOAT16, _CODES8, _CODES4 = range(4)
_KINDS = {torch.float32: _FLOAT32, torch.bfloat16: _BFLOAT16}


class Codes(NamedTuple):
    """A moment in blocks of codes: 256 of 8 bits or 128 of 4 bits."""

    bits: int
    codes: Tensor
    """(P,) or (ceil(P / 2),) uint8."""
    block_scale: Tensor
    """One float32 a block."""
    values: Tensor
    """(2**bits,) float32: what the codes stand for."""
    first_code: Tensor
    """(65536,) uint8: for each upper half of a float32, the code at the lower end of its interval."""
    next_boundary: Tensor
    """(65536,) float32: the only boundary between codes inside of this interval."""


class Rounded(NamedTuple):
    """A moment in bfloat16, written with stochastic rounding."""

    values: Tensor
    key_pair: KeyPair
    first: int = 0
    """Index of the first element, as the hash counts."""


Moment = Codes | Rounded | Tensor


_pointer, _int, _float, _word = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_uint32
_KEYS = [("first", _int), ("first_key", _word), ("second_key", _word)]


class _Moment(ctypes.Structure):
    _fields_ = [
        ("kind", _int),
        *((name, _pointer) for name in ("data", "scale", "values", "first_code", "next_boundary")),
        *_KEYS,
    ]


class _Step(ctypes.Structure):
    _fields_ = [
        *(("count", _int), ("grad", _pointer), ("grad_kind", _int), ("moments", _Moment * 2)),
        *((name, _float) for name in ("rest1", "beta2", "rest2", "correction1", "correction2_sqrt", "eps")),
        *(("is_official", _int), ("out", _pointer), ("writes", _int), ("alpha", _float), ("beta", _float)),
        *_KEYS,
    ]


class _Rounding(ctypes.Structure):
    _fields_ = [
        *(("count", _int), ("source", _pointer), ("out", _pointer), ("is_update", _int)),
        *(("alpha", _float), ("beta", _float)),
        *_KEYS,
    ]


def direction(grad: Tensor, moments: tuple[Moment, Moment], options: Options) -> Tensor:
    """Update both moments and return AdamW's direction.

    Args:
        grad: any shape, float32 or bfloat16, on the CPU. Not modified.
        moments: exp_avg and exp_avg_sq of as many elements; written in place.
        options: of the step.
    Returns:
        New float32 tensor of the shape of `grad`.
    Raises:
        ShapeError: if a tensor has another number of elements, type or device than the gradient asks for.
    Cost: with 8-bit moments, reads 6 and writes 6 bytes an element for a float32 gradient.
    """
    out = torch.empty(grad.shape, dtype=torch.float32)
    _adamw(grad, moments, options, out, 0, None)
    return out


def step_(grad: Tensor, moments: tuple[Moment, Moment], options: Options, write: Write) -> None:
    """Update both moments and the weight.

    Args:
        grad: any shape, float32 or bfloat16, on the CPU. Not modified.
        moments: as for `direction`, of a whole parameter.
        options: of the step.
        write: the weight, written in place.
    Raises:
        ShapeError: as `direction`.
    """
    _adamw(grad, moments, options, write.weight, 2 if write.weight.dtype == torch.bfloat16 else 1, write)
    mark_written(write.weight)


def stochastic_round_(out: Tensor, values: Tensor, *, offset: int, key_pair: KeyPair) -> Tensor:
    """Write `values` to a bfloat16 tensor with stochastic rounding.

    Args:
        out: contiguous bfloat16 on the CPU. Overwritten.
        values: same shape, float32. Not modified.
        offset: index of the first element, as the hash counts.
        key_pair: keys of each span.
    Returns:
        `out`.
    """
    return _round_(out, values, 1.0, 0.0, offset, key_pair, is_update=False)


def add_direction_(
    weight: Tensor, direction: Tensor, *, alpha: float, beta: float, offset: int, key_pair: KeyPair
) -> None:
    """Compute ``weight <- beta * weight + alpha * direction`` in float32, with stochastic rounding.

    Args:
        weight: contiguous bfloat16 on the CPU.
        direction: as many elements, float32.
        alpha: factor of the direction.
        beta: factor of the weight.
        offset: index of the weight's first element, as the hash counts.
        key_pair: keys of each span.
    """
    _round_(weight, direction, alpha, beta, offset, key_pair, is_update=True)


def runs_on(tensor: Tensor) -> bool:
    """Say whether the functions of this module are to run on a tensor; compiles them at first.

    In a simulation of a step they run on what a simulated CPU holds, and compute nothing.
    """
    if kernels.chosen not in ("auto", "native") or tensor.device.type != "cpu":
        return False
    if simulated.current is not None:
        return simulated.current.kind == "cpu" and is_available()
    # A tensor of another class may hold its numbers elsewhere.
    return type(tensor) in (Tensor, torch.nn.Parameter) and is_available()


def is_available() -> bool:
    """Say whether the functions of this module run on this machine; compiles them when first asked."""
    return library()[0] is not None


def status() -> str:
    """Return a sentence on where the functions of this module stand on this machine."""
    loaded, reason = library()
    return reason if loaded is None else f"compiled C code, with the bits of PyTorch's operations ({reason})"


@lru_cache(maxsize=1)
def library() -> tuple[ctypes.CDLL | None, str]:
    """Return the compiled functions and their file, or None and the reason why there are none."""
    compiler = next((found for name in _compilers() if (found := shutil.which(name))), None)
    if compiler is None:
        return None, f"PyTorch's operations: no C compiler is found (looked for {', '.join(_compilers())})"
    try:
        path = _compiled(compiler)
        loaded = ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError) as error:
        return None, f"PyTorch's operations: {compiler} does not compile {SOURCE.name} ({_last_line(error)})"
    for function, structure in ((loaded.featherweight_adamw, _Step), (loaded.featherweight_round, _Rounding)):
        function.argtypes, function.restype = [ctypes.POINTER(structure), _int, _int], None
    from featherweight.kernels.native_check import differing_result

    with _disable_current_modes():  # asked for the first time in a simulation, it still compares numbers
        difference = differing_result(loaded)
    if difference:
        return None, f"PyTorch's operations: {difference} differs from the compiled code on this processor"
    return loaded, path.name


def _compilers() -> list[str]:
    return [os.environ["CC"]] if os.environ.get("CC") else ["cc", "gcc", "clang"]


def _compiled(compiler: str) -> Path:
    """Return the shared library, compiled if it is not in the cache."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=60, check=True).stdout
    native = "-mcpu=native" if platform.machine().lower() in ("arm64", "aarch64") else "-march=native"
    key = hashlib.sha256("\0".join([SOURCE.read_text(), version, native, *FLAGS, _processor()]).encode()).hexdigest()
    name = f"native-{key[:16]}.so"
    place = cache_folder() / "kernels"
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        writable = os.access(place, os.W_OK)
    except OSError:
        writable = False
    target = (place if writable else Path(tempfile.mkdtemp(prefix="featherweight-"))) / name
    if not target.exists():
        _compile(compiler, native, target)
    return target


def _compile(compiler: str, native: str, target: Path) -> None:
    """Compile into a file beside the target and rename it, so that two processes do not disturb each other."""
    with new_file(target) as part:
        command = [compiler, *FLAGS, native, str(SOURCE), "-o", str(part), "-lm"]
        subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def _processor() -> str:
    """Return what tells processors apart whose code differs: a home folder may be shared between machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()} {sys.platform}"
    kept = [line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))]
    return "\n".join(sorted(set(kept)))


def _last_line(error: Exception) -> str:
    text = str(getattr(error, "stderr", None) or error).strip()
    return text.splitlines()[-1] if text else type(error).__name__


def _adamw(
    grad: Tensor, moments: tuple[Moment, Moment], options: Options, out: Tensor, writes: int, write: Write | None
) -> None:
    loaded, reason = library()
    assert loaded is not None, reason
    if simulated.current is not None:  # nothing to compute, and no memory but that of the results
        return
    run_adamw(loaded, grad, moments, options, out, writes, write)


def run_adamw(
    loaded: ctypes.CDLL,
    grad: Tensor,
    moments: tuple[Moment, Moment],
    options: Options,
    out: Tensor,
    writes: int,
    write: Write | None = None,
) -> None:
    """Call the compiled step after everything that it takes on trust was compared.

    Args:
        loaded: the compiled functions.
        grad: see `direction`.
        moments: see `direction`.
        options: of the step.
        out: direction or weight.
        writes: 0 for a direction, 1 for a float32 and 2 for a bfloat16 weight.
        write: factors and keys of the weight.
    """
    count = grad.numel()
    _require("grad", grad, count, *_KINDS)
    _require("weight" if writes else "direction", out, count, torch.bfloat16 if writes == 2 else torch.float32)
    if not out.is_contiguous():
        raise ShapeError(
            f"kernels.native: weight={tuple(out.shape)} is not contiguous; expected contiguous memory. Copy it first."
        )
    for name, moment in zip(("exp_avg", "exp_avg_sq"), moments, strict=True):
        _require_moment(name, moment, count)
    beta1, beta2, eps, step, is_official = options
    correction1, correction2_sqrt = 1 - beta1**step, (1 - beta2**step) ** 0.5
    if is_official:
        correction1 = correction2_sqrt / correction1
    flat_grad = grad.contiguous().view(-1)
    alpha, beta = (1.0, 1.0) if write is None else (write.alpha, write.beta)
    for start, stop in _spans(count, moments):
        keys = (0, 0) if write is None or writes != 2 else write.key_pair(start // SPAN_ELEMENTS)
        call = _Step(
            *(stop - start, _address(flat_grad, start), _KINDS[grad.dtype]),
            (_Moment * 2)(*(_described(moment, start) for moment in moments)),
            *(1 - beta1, beta2, 1 - beta2, correction1, correction2_sqrt, eps),
            *(int(is_official), _address(out, start), writes, alpha, beta),
            *(start % SPAN_ELEMENTS, *(key & 0xFFFFFFFF for key in keys)),
        )
        _run(loaded.featherweight_adamw, call, stop - start)
    mark_written(*(part for moment in moments for part in _written(moment)))


def run_round(
    loaded: ctypes.CDLL,
    out: Tensor,
    source: Tensor,
    alpha: float,
    beta: float,
    offset: int,
    key_pair: KeyPair,
    *,
    is_update: bool,
) -> Tensor:
    """Call the compiled rounding after everything that it takes on trust was compared; returns `out`."""
    _require("out", out, out.numel(), torch.bfloat16)
    _require("values", source, out.numel(), torch.float32)
    if not out.is_contiguous():
        raise ShapeError(
            f"kernels.native: out={tuple(out.shape)} is not contiguous; expected contiguous memory. Copy it first."
        )
    flat = source.contiguous().view(-1)
    for start, stop in tiles(out.numel(), SPAN_ELEMENTS, first=offset):
        span, first = divmod(start, SPAN_ELEMENTS)
        keys = (key & 0xFFFFFFFF for key in key_pair(span))
        begin = start - offset
        call = _Rounding(
            *(stop - start, _address(flat, begin), _address(out, begin)), int(is_update), alpha, beta, first, *keys
        )
        _run(loaded.featherweight_round, call, stop - start)
    mark_written(out)
    return out


def _round_(
    out: Tensor, source: Tensor, alpha: float, beta: float, offset: int, key_pair: KeyPair, *, is_update: bool
) -> Tensor:
    loaded, reason = library()
    assert loaded is not None, reason
    if simulated.current is not None:
        return out
    return run_round(loaded, out, source, alpha, beta, offset, key_pair, is_update=is_update)


def _spans(count: int, moments: tuple[Moment, Moment]) -> list[tuple[int, int]]:
    """Return the runs of elements in which no tensor changes its pair of keys."""
    firsts = {0, *(moment.first % SPAN_ELEMENTS for moment in moments if isinstance(moment, Rounded))}
    cuts = {cut for first in firsts for cut in range(SPAN_ELEMENTS - first, count, SPAN_ELEMENTS)}
    edges = sorted({0, count, *cuts})
    return list(zip(edges, edges[1:], strict=False))


def _run(function: object, call: ctypes.Structure, count: int) -> None:
    """Let as many threads as PyTorch uses work on runs of whole blocks. A call by ctypes lets other threads run."""
    assert callable(function)
    blocks = -(-count // BLOCK)
    parts = max(1, min(torch.get_num_threads(), blocks // THREAD_BLOCKS))
    edges = [blocks * part // parts for part in range(parts + 1)]
    reference = ctypes.byref(call)
    if parts == 1:
        function(reference, 0, blocks)
    else:
        list(_threads().map(lambda ends: function(reference, *ends), zip(edges, edges[1:], strict=False)))


@lru_cache(maxsize=1)
def _threads_of(process: int, count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="featherweight-native")


def _threads() -> ThreadPoolExecutor:
    """Return the threads of this process: those of a parent do not live on in a fork."""
    return _threads_of(os.getpid(), torch.get_num_threads())


def _described(moment: Moment, start: int) -> _Moment:
    """Return a moment from an element on, as the C code takes it."""
    if isinstance(moment, Codes):
        block = BLOCK if moment.bits == 8 else BLOCK // 2
        return _Moment(
            _CODES8 if moment.bits == 8 else _CODES4,
            _address(moment.codes, start if moment.bits == 8 else start // 2),
            _address(moment.block_scale, start // block),
            *(table.data_ptr() for table in (moment.values, moment.first_code, moment.next_boundary)),
        )
    if isinstance(moment, Rounded):
        span, first = divmod(moment.first + start, SPAN_ELEMENTS)
        keys = (key & 0xFFFFFFFF for key in moment.key_pair(span))
        return _Moment(_BFLOAT16, _address(moment.values, start), None, None, None, None, first, *keys)
    return _Moment(_FLOAT32, _address(moment, start))


def _written(moment: Moment) -> tuple[Tensor, ...]:
    if isinstance(moment, Codes):
        return moment.codes, moment.block_scale
    return (moment.values,) if isinstance(moment, Rounded) else (moment,)


def mark_written(*tensors: Tensor) -> None:
    """Tell autograd that a kernel has changed tensors: torch counts only its own writes."""
    torch.autograd.graph.increment_version([tensor for tensor in tensors if not tensor.is_inference()])


def _address(tensor: Tensor, element: int) -> int:
    return tensor.data_ptr() + element * tensor.element_size()


def _require_moment(name: str, moment: Moment, count: int) -> None:
    if not isinstance(moment, Codes):
        stored, dtype = (moment.values, torch.bfloat16) if isinstance(moment, Rounded) else (moment, torch.float32)
        _require(name, stored, count, dtype)
        parts: tuple[Tensor, ...] = (stored,)
    else:
        eight = moment.bits == 8
        _require(f"{name}.codes", moment.codes, count if eight else -(-count // 2), torch.uint8)
        _require(
            f"{name}.block_scale", moment.block_scale, -(-count // (BLOCK if eight else BLOCK // 2)), torch.float32
        )
        _require(f"{name}.values", moment.values, 2**moment.bits, torch.float32)
        _require(f"{name}.first_code", moment.first_code, 1 << 16, torch.uint8)
        _require(f"{name}.next_boundary", moment.next_boundary, 1 << 16, torch.float32)
        parts = moment[1:]
    if not all(part.is_contiguous() for part in parts):
        raise ShapeError(f"kernels.native: {name} is not contiguous; expected contiguous memory. Copy it first.")


def _require(name: str, tensor: Tensor, count: int, *dtypes: torch.dtype) -> None:
    """Compare what the C code takes on trust."""
    if tensor.device.type != "cpu" or tensor.dtype not in dtypes or tensor.numel() != count:
        kinds = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ShapeError(
            f"kernels.native: {name} has {tensor.numel()} elements of {tensor.dtype} on {tensor.device}; expected "
            f"{count} of {kinds} on the cpu. Give the state its parameter's size, or make it anew."
        )

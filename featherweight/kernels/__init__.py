"""Kernels for what PyTorch's operations do in many small passes: compiled C on a CPU, Triton on a GPU.

Each kernel stands behind the function of its twin in plain PyTorch, which asks `native_on` or `run_on` and has the
same results. On a CPU they run by themselves wherever a C compiler is found (`native`). Triton's are off at first, as
no gain has been measured on a card yet: `use("triton")` switches them on. Both are loaded when the first one runs.
Rounding is that of IEEE 754 everywhere: divisions and roots to nearest, and products are fused with sums only where
torch fuses them (`tl.fma`), so `launch` forbids the compiler to fuse others.
"""

import importlib
import importlib.util
import os
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featherweight.errors import LISTED, ConfigError, DeviceError, MissingExtraError, did_you_mean
from featherweight.simulated import simulated_device

__all__ = ["native_on", "run_on", "use"]

CHOICES = ("auto", "torch", "native", "triton")
KeyPair = Callable[[int], tuple[int, int]]
"""The two keys of the hash for each span of elements that share them."""

# One for all threads: backward passes, where layer-wise steps run, have threads of their own.
chosen = "auto"
"""Who computes; changed by `use` alone."""


def use(name: str) -> ExitStack:
    """Choose who computes from now on; in a `with` statement, until its end.

    Args:
        name: "auto" (the default) for compiled C on a CPU where it can be had and PyTorch's operations elsewhere,
            "torch" for PyTorch's operations everywhere, "native" as "auto" but an error where nothing can be compiled,
            "triton" for Triton's kernels.
    Raises:
        ConfigError: for another name.
        MissingExtraError: if Triton is not installed.
        DeviceError: if there is neither a CUDA device nor Triton's interpreter (``TRITON_INTERPRET=1``); for
            "native", if there is no C compiler.
    Example:
        >>> import featherweight as fw
        >>> with fw.kernels.use("torch"):
        ...     fw.kernels.run_on(torch.zeros(1))
        False
    """
    if name not in CHOICES:
        raise ConfigError(
            f"kernels.use: name={name!r} is unknown; expected one of {', '.join(CHOICES)}. "
            f"{did_you_mean(name, CHOICES, otherwise=LISTED)}"
        )
    if name == "triton":
        _require_triton()
    if name == "native":
        _require_native()
    before = ExitStack()
    before.callback(_choose, chosen)
    _choose(name)
    return before


def run_on(tensor: Tensor) -> bool:
    """Say whether a kernel is to run on a tensor; never in a simulation, where there are no numbers.

    Raises:
        DeviceError: if kernels are switched on and the tensor is where none can run.
    """
    if chosen != "triton" or simulated_device() is not None or tensor.is_meta:
        return False
    if tensor.device.type != "cuda" and not is_interpreted():
        raise DeviceError(
            f"kernels: device={tensor.device} cannot run Triton; expected cuda, or TRITON_INTERPRET=1 in the "
            'environment from the start. Move the model, or call fw.kernels.use("torch").'
        )
    return True


def native_on(tensor: Tensor) -> bool:
    """Say whether compiled C is to run on a tensor of a CPU, in a simulation of one too; compiles it at first."""
    runs: bool = __getattr__("native").runs_on(tensor)
    return runs


def is_interpreted() -> bool:
    """Say whether Triton interprets kernels instead of compiling them: slow, on any device, for tests."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def launch(kernel: Any, programs: int, *tensors_and_numbers: Any, **constants: Any) -> None:
    """Run so many programs of a kernel, without fusing products and sums that the kernel has not fused.

    Args:
        kernel: a function under `triton.jit`.
        programs: size of the grid; nothing runs for 0.
        tensors_and_numbers: arguments in their order.
        constants: arguments known when the kernel is compiled, and options of the compiler.
    """
    if not programs:
        return
    device = next(one.device for one in tensors_and_numbers if isinstance(one, Tensor))
    # numpy warns of the infinities and NaN that a GPU computes in silence.
    quiet = np.errstate(all="ignore") if is_interpreted() else nullcontext()
    with quiet, torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[(programs,)](*tensors_and_numbers, **constants, enable_fp_fusion=False)


def __getattr__(name: str) -> Any:
    """Import the kernels, and Triton with those that need it, when they are first named."""
    if name not in ("adamw", "int8_update", "native", "rounding"):
        raise AttributeError(f"module 'featherweight.kernels' has no attribute '{name}'")
    return importlib.import_module(f"featherweight.kernels.{name}")


def _choose(name: str) -> None:
    global chosen
    chosen = name


def _require_native() -> None:
    native = __getattr__("native")
    if not native.is_available():
        raise DeviceError(
            f"kernels.use: name='native' cannot be had; {native.status()}. Install a C compiler (Debian: "
            "apt-get install gcc), or keep to 'auto'."
        )


def _require_triton() -> None:
    if importlib.util.find_spec("triton") is None:
        raise MissingExtraError(
            "kernels.use: name='triton' needs the package triton, which is not installed; expected Linux with it. "
            "Install it by: pip install 'featherweight[kernels]'"
        )
    if not torch.cuda.is_available() and not is_interpreted():
        raise DeviceError(
            "kernels.use: name='triton' finds no CUDA device; expected one, or TRITON_INTERPRET=1 in the environment "
            "from the start. Keep to the default 'torch'."
        )

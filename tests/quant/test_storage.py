"""What is special to one storage; what every one must do stands in `tests/contracts/test_storage.py`."""

import math

import pytest
import torch

from featherweight.errors import ConfigError
from featherweight.quant.storage import (
    MIN_QUANTIZED_NUMEL,
    DenseStorage,
    DynamicStorage,
    UniformStorage,
    basis_storage_for,
    storage_for,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dense_reads_are_the_stored_tensor(dtype):
    storage = DenseStorage()
    parts = storage.zeros((3, 4), device="cpu", dtype=dtype)
    read = storage.read(parts, (3, 4))
    assert read is parts[""]
    read.add_(1)
    version = parts[""]._version
    storage.write_(parts, read)
    assert parts[""]._version == version  # not even a copy onto itself
    assert torch.equal(parts[""], torch.ones(3, 4, dtype=dtype))


def test_dense_reads_in_another_shape_are_views_that_can_be_written_back():
    storage = DenseStorage()
    parts = storage.zeros((3, 4), device="cpu")
    read = storage.read(parts, (12,))
    read.add_(torch.arange(12.0))
    storage.write_(parts, read)
    assert torch.equal(parts[""], torch.arange(12.0).view(3, 4))


def test_dense_bf16_rounds_to_nearest():
    values = torch.randn(50, generator=torch.Generator().manual_seed(0))
    parts = DenseStorage(torch.bfloat16).zeros((50,), device="cpu")
    DenseStorage(torch.bfloat16).write_(parts, values)
    assert torch.equal(parts[""], values.bfloat16())


def test_codes_take_the_bytes_that_are_announced():
    numel = 1 << 20
    assert DynamicStorage(8, True).nbytes((numel,)) == numel + 4 * numel // 256
    assert DynamicStorage(4, True).nbytes((numel,)) == numel // 2 + 4 * numel // 128
    assert UniformStorage(8).nbytes((numel,)) == numel + 5 * numel // 256
    assert UniformStorage(4).nbytes((numel,)) == numel // 2 + 5 * numel // 256
    assert DynamicStorage(4, False).nbytes((1001,)) == 501 + 4 * math.ceil(1001 / 128)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_stored_second_moment_is_zero_only_where_it_was_zero(bits):
    storage = DynamicStorage(bits, signed=False)
    values = torch.zeros(512)
    values[0], values[1] = 1.0, 1e-30
    values[256] = 1e-20
    parts = storage.zeros((512,), device="cpu")
    storage.write_(parts, values)
    read = storage.read(parts, (512,))
    assert bool((read[values > 0] > 0).all())
    if bits == 8:
        assert bool((read[values == 0] == 0).all())


def test_storage_is_chosen_by_width_sign_and_size():
    large = MIN_QUANTIZED_NUMEL
    assert storage_for(32, signed=True, numel=large) == DenseStorage()
    assert storage_for(16, signed=True, numel=large) == DenseStorage(torch.bfloat16)
    assert storage_for(8, signed=True, numel=large) == DynamicStorage(8, True)
    assert storage_for(4, signed=False, numel=large) == DynamicStorage(4, False)
    assert all(storage_for(b, signed=True, numel=large - 1) == DenseStorage() for b in (32, 16, 8, 4))
    chosen = [basis_storage_for(bits) for bits in (32, 16, 8, 4)]
    assert chosen == [DenseStorage(), DenseStorage(torch.bfloat16), UniformStorage(8), UniformStorage(4)]


@pytest.mark.parametrize("bits", [0, 1, 2, 64, True])
def test_other_widths_are_refused(bits):
    for choose in (lambda: storage_for(bits, signed=True, numel=9), lambda: basis_storage_for(bits)):
        with pytest.raises(ConfigError, match=f"bits={bits} is no storage width; expected 32, 16, 8 or 4"):
            choose()
    with pytest.raises(ConfigError, match="has no code"):
        DynamicStorage(bits, True)
    with pytest.raises(ConfigError, match="has no code"):
        UniformStorage(bits)


@pytest.mark.parametrize(("bits", "gain"), [(4, 0.05), (8, 0.004)])
def test_renorm_gives_the_columns_of_a_rounded_basis_unit_length(bits, gain):
    basis = torch.linalg.qr(torch.randn(1024, 256, generator=torch.Generator().manual_seed(0))).Q
    for renorm in (False, True):
        storage = UniformStorage(bits, renorm)
        parts = storage.zeros(basis.shape, device="cpu")
        storage.write_(parts, basis)
        values = storage.read(parts, basis.shape)
        lengths = values.norm(dim=0)
        # fp16 holds the norms to 2^-11; without them rounding to 4 bits moves lengths by a few percent.
        assert float((lengths - 1).abs().max()) < (6e-4 if renorm else gain)
        # The relative error of a random orthonormal basis in 4 bits: 0.109 (0.0064 in 8).
        error = float((values - basis).norm() / basis.norm())
        assert error == pytest.approx(0.109 if bits == 4 else 0.0064, rel=0.03)
        assert sum(part.nbytes for part in parts.values()) == storage.nbytes(basis.shape)

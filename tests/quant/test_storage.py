"""What every storage must do, for every storage; then what is special to one."""

import io
import math

import pytest
import torch

from featherweight.errors import ConfigError, ShapeError
from featherweight.quant.storage import (
    MIN_QUANTIZED_NUMEL,
    DenseStorage,
    DynamicStorage,
    StateStorage,
    UniformStorage,
    basis_storage_for,
    storage_for,
)

# Storage and its worst error relative to the largest magnitude of a block: half of the widest gap of its values.
STORAGES = [
    (DenseStorage(), 0.0),
    (DenseStorage(torch.bfloat16), 2**-8),
    (DynamicStorage(8, True), 0.9 / 64 / 2),
    (DynamicStorage(8, False), 0.9 / 128 / 2),
    (DynamicStorage(4, True), 0.9 / 4 / 2),
    (DynamicStorage(4, False), 0.9 / 8 / 2),
    (UniformStorage(8), 2 / 255 / 2),
    (UniformStorage(4), 2 / 15 / 2),
]
SHAPES = [(), (1,), (0,), (3, 0), (5,), (7, 37), (256,), (2, 128), (3, 5, 97), (300, 301)]

every_storage = pytest.mark.parametrize(("storage", "error"), STORAGES, ids=[s.name for s, _ in STORAGES])
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def values_of(storage, shape, seed=0):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values.abs() if storage.name.endswith("unsigned") else values


def filled(storage, shape, seed=0):
    parts, values = storage.zeros(shape, device="cpu"), values_of(storage, shape, seed)
    storage.write_(parts, values)
    return parts, values


@every_storage
@every_shape
def test_zeros_read_as_zeros(storage, error, shape):
    read = storage.read(storage.zeros(shape, device="cpu"), shape)
    assert read.dtype == torch.float32
    assert torch.equal(read, torch.zeros(shape)) and not bool(torch.signbit(read).any())


@every_storage
@every_shape
def test_what_was_written_is_read_within_the_error(storage, error, shape):
    parts, values = filled(storage, shape)
    read = storage.read(parts, shape)
    assert read.shape == torch.Size(shape) and read.dtype == torch.float32
    flat, result = values.reshape(-1), read.reshape(-1)
    block = storage.granularity if storage.granularity > 1 else max(flat.numel(), 1)
    for start in range(0, flat.numel(), block):
        largest = float(flat[start : start + block].abs().max())
        worst = float((flat - result)[start : start + block].abs().max())
        assert worst <= largest * error * (1 + 1e-4)  # float32 rounding of scale and product
    if error and flat.numel() > 1000:
        assert not torch.equal(read, values)  # the storage is not secretly dense


@every_storage
@every_shape
def test_nbytes_is_exact(storage, error, shape):
    for dtype in (torch.float32, torch.float64):
        parts = storage.zeros(shape, device="cpu", dtype=dtype)
        assert sum(part.nbytes for part in parts.values()) == storage.nbytes(shape, dtype)
        assert sum(part.untyped_storage().nbytes() for part in parts.values()) == storage.nbytes(shape, dtype)
    assert storage.nbytes(shape) == storage.nbytes(shape, torch.float32)


@every_storage
@every_shape
def test_writing_changes_the_parts_in_place(storage, error, shape):
    parts = storage.zeros(shape, device="cpu")
    pointers = {key: part.data_ptr() for key, part in parts.items()}
    for seed in range(2):
        storage.write_(parts, values_of(storage, shape, seed))
    assert pointers == {key: part.data_ptr() for key, part in parts.items()}
    fresh, _ = filled(storage, shape, seed=1)
    assert all(torch.equal(parts[key], fresh[key]) for key in fresh)


@every_storage
def test_slices_read_what_the_whole_reads(storage, error):
    numel = 5 * 256 + 77
    parts, _ = filled(storage, (numel,))
    whole = storage.read(parts, (numel,))
    step = max(storage.granularity, 50)
    for start in range(0, numel, step):
        stop = min(start + step, numel)
        piece = storage.slice(parts, start, stop)
        assert torch.equal(storage.read(piece, (stop - start,)), whole[start:stop])
        assert all(piece[key].untyped_storage().data_ptr() == parts[key].untyped_storage().data_ptr() for key in parts)


@every_storage
def test_writing_slice_by_slice_equals_writing_the_whole(storage, error):
    shape, numel = (39, 41), 39 * 41
    expected, values = filled(storage, shape)
    parts = storage.zeros(shape, device="cpu")
    for start in range(0, numel, 512):
        stop = min(start + 512, numel)
        storage.write_(storage.slice(parts, start, stop), values.reshape(-1)[start:stop])
    assert all(torch.equal(parts[key], expected[key]) for key in expected)


@every_storage
def test_an_empty_slice_is_empty(storage, error):
    parts, _ = filled(storage, (1024,))
    assert storage.read(storage.slice(parts, 512, 512), (0,)).numel() == 0


@every_storage
@every_shape
def test_parts_survive_saving_and_loading_with_weights_only(storage, error, shape):
    parts, _ = filled(storage, shape)
    buffer = io.BytesIO()
    torch.save(parts, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=True)
    assert loaded.keys() == parts.keys()
    assert torch.equal(storage.read(loaded, shape), storage.read(parts, shape))


@every_storage
def test_reading_and_writing_back_changes_nothing_more(storage, error):
    # Values whose largest magnitude per block is positive: then the scale itself is reproduced.
    parts, values = storage.zeros((512,), device="cpu"), values_of(storage, (512,))
    values[::64] = 5.0
    storage.write_(parts, values)
    before = {key: part.clone() for key, part in parts.items()}
    storage.write_(parts, storage.read(parts, (512,)))
    if not isinstance(storage, UniformStorage):  # its steps may change by a rounding; the codes may not
        assert all(torch.equal(parts[key], before[key]) for key in before)
    else:
        assert torch.equal(parts["codes"], before["codes"])


@every_storage
def test_a_tensor_of_another_size_is_refused(storage, error):
    parts, _ = filled(storage, (600,))
    with pytest.raises((ShapeError, RuntimeError)):
        storage.write_(parts, torch.ones(900))
    with pytest.raises(ShapeError):
        storage.read(parts, (900,))


@every_storage
def test_a_storage_compares_by_value_and_has_its_own_name(storage, error):
    assert storage == type(storage)(**vars(storage))
    assert [other.name for other, _ in STORAGES].count(storage.name) == 1
    protocol: StateStorage = storage
    assert protocol.granularity % 2 == 0 or protocol.granularity == 1


@pytest.mark.parametrize("storage", [s for s, _ in STORAGES if s.granularity > 1], ids=lambda s: s.name)
@pytest.mark.parametrize(("start", "stop"), [(1, 512), (64, 512), (0, 100), (0, 2000), (512, 256)])
def test_slices_that_cut_blocks_or_leave_the_tensor_are_refused(storage, start, stop):
    parts, _ = filled(storage, (1024,))
    with pytest.raises(ShapeError, match=rf"slice \[{start}, {stop}\) cuts a block or leaves the tensor"):
        storage.slice(parts, start, stop)


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
    parts, values = filled(DenseStorage(torch.bfloat16), (50,))
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

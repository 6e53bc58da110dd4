"""What every storage must do: `featherweight.quant.storage.StateStorage` names it.

What is special to one stands in `tests/quant/test_storage.py`.
"""

import inspect
import io

import pytest
import torch

from featherweight.errors import ShapeError
from featherweight.quant import storage as storages
from featherweight.quant.storage import (
    DenseStorage,
    DynamicStorage,
    StateStorage,
    UniformStorage,
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
OF_COLUMNS = [UniformStorage(8, renorm=True), UniformStorage(4, renorm=True)]
"""Storages of matrices with columns of unit length: other shapes have no columns, and slices would cut them."""
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
    assert all(type(part) is torch.Tensor for part in parts.values())
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


def test_every_class_that_is_a_storage_stands_in_the_tables():
    members = {name for name in vars(StateStorage) if not name.startswith("_")}
    classes = {one for _, one in inspect.getmembers(storages, inspect.isclass) if members <= set(vars(one))}
    assert classes - {StateStorage} == {type(storage) for storage, _ in STORAGES}


@pytest.mark.parametrize("storage", [*(one for one, _ in STORAGES), *OF_COLUMNS], ids=lambda one: one.name)
def test_a_storage_compares_by_value_has_its_own_name_and_holds_no_tensor(storage):
    every = [*(one for one, _ in STORAGES), *OF_COLUMNS]
    assert storage == type(storage)(**vars(storage)) and hash(storage) == hash(type(storage)(**vars(storage)))
    assert every.count(storage) == [other.name for other in every].count(storage.name) == 1
    assert storage.granularity % 2 == 0 or storage.granularity == 1
    assert not any(isinstance(value, torch.Tensor) for value in vars(storage).values())
    with pytest.raises(AttributeError):
        storage.bits = 2


@pytest.mark.parametrize("storage", OF_COLUMNS, ids=lambda one: one.name)
def test_storages_of_columns_keep_the_contract_on_matrices(storage):
    shape = (64, 12)
    basis = torch.linalg.qr(torch.randn(shape, generator=torch.Generator().manual_seed(0))).Q
    parts = storage.zeros(shape, device="cpu")
    assert torch.equal(storage.read(parts, shape), torch.zeros(shape))
    pointers = {key: part.data_ptr() for key, part in parts.items()}
    storage.write_(parts, basis)
    assert pointers == {key: part.data_ptr() for key, part in parts.items()}
    assert sum(part.untyped_storage().nbytes() for part in parts.values()) == storage.nbytes(shape)
    assert all(type(part) is torch.Tensor for part in parts.values())
    # A step of the codes, which reach over a range: half of it for rounding, half for the division by norms near 1.
    step = float(basis.max() - basis.min()) / (2**storage.bits - 1)
    assert float((storage.read(parts, shape) - basis).abs().max()) <= step
    with pytest.raises(ShapeError, match="cuts columns"):
        storage.slice(parts, 0, 256)


@pytest.mark.parametrize("storage", [s for s, _ in STORAGES if s.granularity > 1], ids=lambda s: s.name)
@pytest.mark.parametrize(("start", "stop"), [(1, 512), (64, 512), (0, 100), (0, 2000), (512, 256)])
def test_slices_that_cut_blocks_or_leave_the_tensor_are_refused(storage, start, stop):
    parts, _ = filled(storage, (1024,))
    with pytest.raises(ShapeError, match=rf"slice \[{start}, {stop}\) cuts a block or leaves the tensor"):
        storage.slice(parts, start, stop)

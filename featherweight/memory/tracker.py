"""Counts the bytes that torch allocates, by storage and by role, while a training step runs.

`StorageTracker` sees every operator as a dispatch mode, knows a tensor by its untyped storage (views and in-place
results add nothing), and learns of its end from a weak reference on the storage. `featherweight.memory.measure` is the
comfortable way to use it. It works on real tensors and under `FakeTensorMode` alike and knows nothing about recipes.

What no dispatch mode can see, so neither can this one: scratch memory inside a kernel (cuBLAS workspaces, the inside of
a fused attention), saved generator states (5 KB for each checkpointed layer), and memory of other libraries.
torch.compile steps aside under a dispatch mode, so a compiled model is measured as its plain self. Autograd then also
adds gradients that meet at a branching point out of place, where it may otherwise reuse one of them: while such a sum
runs, one gradient too many is counted.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch._guards import active_fake_mode
from torch._subclasses.fake_tensor import FakeTensor
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from featherweight.errors import ConfigError
from featherweight.memory.ledger import RANK, Allocation, Category, Entry, Ledger, Phase
from featherweight.memory.simulate import SimulatedTensors
from featherweight.memory.storage_effects import SPARSE_PARTS, effect_of, is_wrapper, tensors_in
from featherweight.memory.timeline import MARK, Timeline
from featherweight.quant.int8_weight import int8_weight_of
from featherweight.quant.weight4bit import statistics_of


def _call(func: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return func(*args, **kwargs) if kwargs else func(*args)


class _StorageRef(weakref.ref):
    """Weak reference to a storage that knows the storage's place in the table and in the books."""

    __slots__ = ("key", "entry")
    key: int
    entry: Entry


class StorageTracker(TorchDispatchMode):
    """Dispatch mode that counts live and peak bytes by category; use it as a context manager, once.

    Counted are the storages of the model, of the optimizer's state and of the tensors given to the model, and all that
    is allocated inside the context; other tensors from before are not. Categories:

    - ``weights``, ``buffers``: parameters and buffers of the model, and parameters of the optimizer; tied ones once.
      Codes and scales of int8 and 4-bit weights are weights.
    - ``gradients``: what is or becomes ``.grad`` of a parameter, and what layer-wise accumulation keeps of one.
    - ``optimizer_state``: tensors in ``optimizer.state`` (nested containers and plain objects included) and its groups.
    - ``activations``: made by a forward pass with grad enabled (or by recomputation in backward) and alive when the
      backward pass goes on.
    - ``temporaries``: everything else made by forward, backward or optimizer step.
    - ``inputs``: tensors given to the model.   ``other``: made in none of the phases.

    Args:
        model: its parameters and buffers are known from the start, and its modules name the allocations.
        optimizer: its state is known from the start, and its ``step`` is the optimizer phase.
        device: only storages on this device are counted.
        rounding: each storage counts as a multiple of this many bytes; 1 is exact, 512 is the rule of the CUDA
            allocator.
        keep_history: remember every event, for `timeline`. About 300 bytes an event.
    Raises:
        ConfigError: if rounding < 1; on entering, if a tracker is active already or this one has been used.
    Cost: about 10 microseconds per operator, and no copy of any tensor.
    Example:
        >>> model = nn.Linear(256, 4, bias=False)
        >>> with StorageTracker(model) as tracker:
        ...     model(torch.zeros(1, 256)).sum().backward()
        >>> tracker.live_by_category["weights"], tracker.live_by_category["gradients"]
        (4096, 4096)
    """

    supports_higher_order_operators = True
    only_observes: ClassVar[bool] = True
    """Its hooks on modules see calls and change none, so whoever asks what a call computes leaves them out."""

    _active: ClassVar["StorageTracker | None"] = None

    def __init__(
        self,
        model: nn.Module | None = None,
        optimizer: Optimizer | None = None,
        *,
        device: torch.device | str = "cpu",
        rounding: int = 1,
        keep_history: bool = False,
    ) -> None:
        super().__init__()
        if rounding < 1:
            raise ConfigError(
                f"StorageTracker: rounding={rounding} is no allocation unit; expected rounding >= 1. "
                "Use 1 for exact bytes or 512 for the CUDA allocator."
            )
        self.device = _with_index(torch.device(device))
        self.rounding = rounding
        self._model = model
        self._optimizer = optimizer
        self._ledger = Ledger(keep_history)
        self._table: dict[int, _StorageRef] = {}
        self._free_callback: Callable[[_StorageRef], None] = self._on_free
        self._cleanup = ExitStack()
        self._was_used = False
        self._fake_mode: object = None

        self._modules: list[str] = []  # paths of the modules that are running, outermost first
        self._is_recording = (
            False  # from a forward with grad enabled until its backward: losses outside the model belong to it
        )
        self._forward_is_open = False
        self._step_task: int | None = None  # autograd task in which optimizer.step was called; None outside a step
        self._scan_is_due = True

    # -- results -------------------------------------------------------------------------------------------------------

    @property
    def live_bytes(self) -> int:
        """Bytes alive now, or when the context was left."""
        return self._ledger.live_bytes

    @property
    def peak_bytes(self) -> int:
        """Highest number of bytes alive at one moment since the start or `reset_peak`."""
        return self._ledger.peak_bytes

    @property
    def peak_phase(self) -> Phase:
        """Phase in which the peak was reached."""
        return self._ledger.peak_phase

    @property
    def live_by_category(self) -> dict[Category, int]:
        """Bytes alive now by category; they add up to `live_bytes`."""
        return self._ledger.live_by_category

    @property
    def peak_by_category(self) -> dict[Category, int]:
        """Bytes by category at the moment of the overall peak; they add up to `peak_bytes`."""
        return self._ledger.peak_by_category

    @property
    def max_by_category(self) -> dict[Category, int]:
        """Own maximum of each category in bytes, each at its own moment."""
        return self._ledger.max_by_category

    def top_allocations(self, limit: int = 10) -> list[Allocation]:
        """Return the largest storages that were alive at the peak, largest first."""
        entries = sorted(self._ledger.entries_at_peak(), key=lambda entry: (-entry.size_bytes, entry.birth))
        return [entry.describe() for entry in entries[:limit]]

    def timeline(self) -> Timeline:
        """Return all that was allocated and freed so far, in order; needs `keep_history`."""
        assert self._ledger.history is not None, "keep_history"
        return Timeline.of_history(self._ledger.history)

    def mark_step(self) -> None:
        """Say that a new step begins, for `timeline`."""
        if self._ledger.history is not None:
            self.scan()
            self._ledger.history.append((Entry(0, "other", op=MARK), 0))

    def reset_peak(self) -> None:
        """Start all maxima again from what is alive now; do it after the first step, which creates the states."""
        self.scan()
        self._ledger.reset_peak()

    # -- context -------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        if StorageTracker._active is not None or self._was_used:
            state = "used before" if self._was_used else "inside another measurement"
            raise ConfigError(
                f"StorageTracker: state='{state}' cannot be measured; expected one measurement at a time, "
                "each entered once. Leave the running one first, or make a new one."
            )
        self._was_used = True
        self._fake_mode = active_fake_mode()
        with ExitStack() as stack:
            StorageTracker._active = self
            stack.callback(self._finish)
            self._hook_modules(stack)
            self._hook_optimizer(stack)
            self._hook_resize(stack)
            self.scan()
            self._ledger.reset_peak()
            if isinstance(self._fake_mode, SimulatedTensors):
                self._fake_mode.watcher = self
            else:
                super().__enter__()
            self._cleanup = stack.pop_all()
        return self

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        with self._cleanup:
            if isinstance(self._fake_mode, SimulatedTensors):
                self._fake_mode.watcher = None
            else:
                super().__exit__(exc_type, exc_value, traceback)
            self.scan()

    def _finish(self) -> None:
        StorageTracker._active = None
        self._table.clear()  # with the weak references go their callbacks: the books stay as they are

    # -- operators -----------------------------------------------------------------------------------------------------

    def __torch_dispatch__(
        self, func: Any, types: tuple[type, ...], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self.watch(_call, func, types, args, kwargs or {})

    def watch(self, run: Callable[..., Any], func: Any, types: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        """Run an operator by ``run(func, types, args, kwargs)`` and book what it allocates."""
        for tensor_type in types:
            if is_wrapper(tensor_type):
                return NotImplemented  # the subclass unwraps first; the operators on its inner tensors come back to us
        phase, category = self._where(args)
        result = run(func, types, args, kwargs)
        makes_storage, changes_size = effect_of(func)
        if makes_storage or changes_size:
            if isinstance(result, Tensor):
                self._observe(result, makes_storage, func, phase, category)
            elif isinstance(result, tuple | list):
                for tensor in tensors_in(result):
                    self._observe(tensor, makes_storage, func, phase, category)
        return result

    def _where(self, args: tuple[Any, ...]) -> tuple[Phase, Category]:
        """Tell in which phase an operator runs and what a storage is called that it allocates."""
        task = torch._C._current_graph_task_id()  # -1 outside the autograd engine
        if self._step_task == task and not self._modules:
            return "optimizer", "temporaries"
        if task != -1:
            self._is_recording = False
            self._scan_is_due = True
            if (
                self._modules or torch.is_grad_enabled()
            ):  # recomputation of a checkpoint; backward itself runs without grad
                self._forward_is_open = True
                return "backward", "activations"
            if self._forward_is_open:
                self._forward_is_open = False
                self._ledger.end_forward()
            return "backward", "temporaries"
        if not self._modules and not self._is_recording:
            if not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors_in(args))):
                return "other", "other"
            self._is_recording = True  # a loss of parameters without any module call
        self._forward_is_open = True
        return "forward", "activations" if self._is_recording else "temporaries"

    def _observe(self, tensor: Tensor, makes_storage: bool, func: object, phase: Phase, category: Category) -> None:
        for storage in self._storages(tensor):
            ref = self._find(storage)
            if ref is not None:
                self._refresh_size(ref, storage)
            elif makes_storage:
                module = self._modules[-1] if self._modules else ""
                self._book(storage, Entry(0, category, phase, func, module, tensor.shape, tensor.dtype))

    # -- storages ------------------------------------------------------------------------------------------------------

    def _storages(self, tensor: Tensor) -> Iterator[torch.UntypedStorage]:
        """Yield the storages that hold a tensor's values on our device: several for a subclass or a sparse tensor."""
        # Asking a fake tensor for its device is an operator; its attribute is not.
        if (tensor.fake_device if type(tensor) is FakeTensor else tensor.device) != self.device:
            return
        if is_wrapper(type(tensor)):
            names, _ = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
            for part in (getattr(tensor, name) for name in names):
                if isinstance(part, Tensor):  # a DTensor also names its mesh
                    yield from self._storages(part)
        elif tensor.layout is torch.strided:
            # DTensor computes shapes on fake tensors of its own; meant are those of the mode around our context.
            if type(tensor) is not FakeTensor or tensor.fake_mode is self._fake_mode:
                try:
                    yield tensor.untyped_storage()
                except NotImplementedError:
                    return  # a wrapper of torch.func; the tensor inside it comes through the operators
        else:
            for name in SPARSE_PARTS.get(tensor.layout, ()):
                yield getattr(tensor, name)().untyped_storage()

    def _find(self, storage: torch.UntypedStorage) -> _StorageRef | None:
        ref = self._table.get(storage._cdata)
        if ref is not None and ref() is not storage:
            # torch keeps one Python object per storage: another one at this address means that we missed an end.
            self._on_free(ref)
            return None
        return ref

    def _book(self, storage: torch.UntypedStorage, entry: Entry) -> None:
        entry.size_bytes = self._size_bytes(storage)
        ref = _StorageRef(storage, self._free_callback)
        ref.key = storage._cdata
        ref.entry = entry
        self._table[ref.key] = ref
        self._ledger.open(entry)

    def _size_bytes(self, storage: torch.UntypedStorage) -> int:
        return -(-storage.nbytes() // self.rounding) * self.rounding

    def _refresh_size(self, ref: _StorageRef, storage: torch.UntypedStorage) -> None:
        size_bytes = self._size_bytes(storage)
        if size_bytes != ref.entry.size_bytes:
            ref.entry = self._ledger.resize(ref.entry, size_bytes)

    def _on_free(self, ref: _StorageRef) -> None:
        if self._table.get(ref.key) is ref:
            del self._table[ref.key]
            self._ledger.close(ref.entry)

    # -- roles ---------------------------------------------------------------------------------------------------------

    def track(self, tensors: object, category: Category, name: str = "") -> None:
        """Count tensors from before the context, or tell the role of tensors that are counted already.

        Args:
            tensors: a tensor or containers of tensors.
            category: their role. It replaces only a less specific one: weights stay weights.
            name: what a list of top allocations shows as their module.
        """
        for tensor in tensors_in(tensors):
            for storage in self._storages(tensor):
                ref = self._find(storage)
                if ref is None:
                    self._book(storage, Entry(0, category, module=name, shape=tensor.shape, dtype=tensor.dtype))
                elif RANK[category] > RANK[ref.entry.category]:
                    ref.entry = self._ledger.relabel(ref.entry, category, name or ref.entry.module)

    def scan(self) -> None:
        """Look for new weights, buffers, gradients and optimizer state; runs before a forward and around a step."""
        self._scan_is_due = False
        names: dict[Tensor, str] = {}
        if self._model is not None:
            names.update((parameter, name) for name, parameter in self._model.named_parameters())
        groups = self._optimizer.param_groups if self._optimizer is not None else []
        for group in groups:
            for parameter in group["params"]:
                names.setdefault(parameter, "")
        for parameter, name in names.items():
            self.track(parameter, "weights", name)
            if (int8 := int8_weight_of(parameter)) is not None:
                self.track((int8.codes, int8.block_scale), "weights", name)
            if statistics := statistics_of(parameter):
                self.track(tuple(statistics.values()), "weights", name)
            if parameter.grad is not None:
                self.track(parameter.grad, "gradients", name)
        if self._model is not None:
            for name, buffer in self._model.named_buffers():
                self.track(buffer, "buffers", name)
        held_gradients = getattr(self._optimizer, "held_gradients", tuple)  # of layer-wise accumulation
        for parameter, tensor in held_gradients():
            self.track(tensor, "gradients", names.get(parameter, ""))
        if self._optimizer is not None:
            for parameter, state in self._optimizer.state.items():
                self.track(state, "optimizer_state", names.get(parameter, ""))
        for group in groups:
            self.track([value for key, value in group.items() if key != "params"], "optimizer_state")

    # -- hooks ---------------------------------------------------------------------------------------------------------

    def _hook_modules(self, stack: ExitStack) -> None:
        if self._model is None:
            return
        for path, module in self._model.named_modules():
            label = path or type(module).__name__
            before = module.register_forward_pre_hook(partial(self._before_module, label), with_kwargs=True)
            stack.callback(before.remove)
            # always_call: checkpointing ends a recomputation early by an exception
            after = module.register_forward_hook(partial(self._after_module, label), always_call=True)
            stack.callback(after.remove)
        for name, parameter in self._model.named_parameters():
            if parameter.requires_grad:
                watch: Any = partial(self._after_gradient, name)
                watch.needs_gradient = False  # whoever forms none (core gradients) need not begin to for a measurement
                hook = parameter.register_post_accumulate_grad_hook(watch)
                stack.callback(hook.remove)
                _move_to_front(parameter._post_accumulate_grad_hooks, hook.id)

    def _before_module(self, label: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._modules and torch._C._current_graph_task_id() == -1:
            self._is_recording = torch.is_grad_enabled()
            if self._scan_is_due:
                self.scan()
            self.track((args, kwargs), "inputs")
        self._modules.append(label)

    def _after_module(self, label: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        while self._modules and self._modules.pop() != label:
            pass  # left behind by an exception that no hook can see, such as KeyboardInterrupt

    def _after_gradient(self, name: str, parameter: Tensor) -> None:
        self.track(parameter.grad, "gradients", name)

    def _hook_optimizer(self, stack: ExitStack) -> None:
        if self._optimizer is None:
            return
        stack.callback(self._optimizer.register_step_pre_hook(self._before_step).remove)
        stack.callback(self._optimizer.register_step_post_hook(self._after_step).remove)

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self.scan()  # finds gradients that were assigned instead of accumulated
        self._is_recording = False
        self._step_task = torch._C._current_graph_task_id()

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._step_task = None
        self.scan()
        self._ledger.settle()

    def _hook_resize(self, stack: ExitStack) -> None:
        """Watch `UntypedStorage.resize_`, by which sharded training frees weights without any operator."""
        original = torch.UntypedStorage.resize_

        def resize_(storage: torch.UntypedStorage, size: int) -> Any:
            result = original(storage, size)
            ref = self._find(storage)
            if ref is not None:
                self._refresh_size(ref, storage)
            return result

        torch.UntypedStorage.resize_ = resize_  # type: ignore[assignment, method-assign]
        stack.callback(setattr, torch.UntypedStorage, "resize_", original)


def _move_to_front(hooks: dict[int, Any] | None, key: int) -> None:
    """Let a hook run first: that of a layer-wise optimizer consumes the gradient and sets it to None."""
    assert hooks is not None, "registering a hook makes the dictionary"
    # autograd walks the plain dictionary below the OrderedDict, in order of insertion: move_to_end would have no effect
    others = {other: hook for other, hook in hooks.items() if other != key}
    for other in others:
        del hooks[other]
    hooks.update(others)


def _with_index(device: torch.device) -> torch.device:
    """Return ``cuda`` as ``cuda:0``, the form in which tensors name their device."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device

"""Where the outermost backward pass of a model begins and ends, and which gradients come in several pieces.

Where it begins is told by a hook on the outputs of the model, because a re-entrant checkpoint runs backward passes
inside of one; autograd itself tells where it ends. During the first step the calls of all modules are counted: the
gradient of a parameter that is used several times reaches it in several pieces if checkpoints are re-entrant.
"""

import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import is_dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Variable
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._pytree import tree_leaves

from featherweight.errors import ConfigError, NumericsError

_CHUNKED = ("featherweight.nn.chunked", "featherweight.nn.output_head")


class _ModelHook:
    """A hook on the model that copies and pickles of the model do not inherit."""

    def __init__(self, function: Callable[..., None] | None = None) -> None:
        self.function = function

    def __call__(self, *args: Any) -> None:
        if self.function is not None:
            self.function(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_ModelHook":
        return _ModelHook()

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return _ModelHook, ()


class BackwardPass:
    """Follows the backward passes of one model.

    Args:
        model: the module that the training loop calls.
        on_end: called when an outermost backward pass ends, with the parameters whose gradients are still in ``.grad``
            and whether any parameter got a gradient.
        on_broken: called when a pass begins and an exception has broken off the one before.
        before_forward: called before each forward pass of the model.
        ends_late: others who ask autograd for the end of a pass bring gradients then (FSDP2 does).
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        on_end: Callable[[list[Tensor]], None],
        on_broken: Callable[[], None],
        before_forward: Callable[[], None],
        ends_late: bool = False,
    ) -> None:
        self.model, self.on_end, self.on_broken, self.before_forward = model, on_end, on_broken, before_forward
        self._ends_late = ends_late
        self.is_known = False
        """Whether a whole step was seen; then calls are not counted any more."""
        self.has_fired = False
        """Whether a parameter got a gradient in the present pass."""
        self._task = -1  # autograd task of the present backward pass, -1 outside
        self._fired: set[Tensor] = set()
        # Shared parameters whose gradient may still grow in this backward pass; a dict, because all processes must
        # come to them in the same order.
        self._late: dict[Tensor, None] = {}
        self._called: set[nn.Module] = set()  # by the forward passes since the last backward pass
        self._shared = _tied_parameters(model)
        self._is_reentrant = False  # whether a part of the model ran without grad, as re-entrant checkpoints do
        self._counting = ExitStack()

    def attach(self, cleanup: ExitStack) -> None:
        """Hang the hooks on the model; `cleanup` takes them away."""
        cleanup.callback(self.model.register_forward_pre_hook(_ModelHook(self._before_forward)).remove)
        cleanup.callback(self.model.register_forward_hook(_ModelHook(self._after_forward)).remove)
        cleanup.callback(self._counting.close)

    def reset(self) -> None:
        """Forget the present pass and drop what waits in ``.grad``."""
        for parameter in self._late:
            parameter.grad = None
        self._clear()

    def _clear(self) -> None:
        self._late.clear()
        self._fired.clear()
        self._called.clear()
        self._task, self.has_fired = -1, False

    @property
    def is_running(self) -> bool:
        """Whether a pass has begun."""
        return self._task != -1

    def begin(self) -> None:
        """Note the outermost backward pass and ask to be told when it ends."""
        task = torch._C._current_graph_task_id()
        if self._task not in (-1, task):
            # Another pass without the end of the first: an exception has broken that one off.
            self.on_broken()
            self.reset()
        if self._task == -1:
            self._task = task
            Variable._execution_engine.queue_callback(partial(self._wait if self._ends_late else self._end, task))

    def begin_outside_of_checkpoints(self, name: str) -> None:
        """Note the outermost backward pass at the first gradient of it.

        Raises:
            ConfigError: inside a re-entrant checkpoint of a model that was not called as a whole.
        """
        if _inside_checkpoint():
            raise ConfigError(
                f"layerwise: '{name}' got its gradient inside a re-entrant checkpoint of a model that was not "
                f"called as a whole; expected a call of {type(self.model).__name__}. Call the model that you gave "
                "to layerwise, or use checkpoint(..., use_reentrant=False)."
            )
        self.begin()

    def is_complete(self, parameter: Tensor, name: str) -> bool:
        """Say whether the gradient that a parameter has got is all of it; if not, it is handed out at the end.

        Raises:
            ConfigError: inside a re-entrant checkpoint of a model that was not called as a whole.
            NumericsError: for a second gradient after a complete one.
        """
        if self._task == -1:
            self.begin_outside_of_checkpoints(name)
        elif torch._C._current_graph_task_id() != self._task and not _inside_checkpoint():
            self.begin()
        self.has_fired = True
        if self._is_reentrant and parameter in self._shared:
            self._late[parameter] = None  # it stays in .grad, where autograd adds what is still to come
            return False
        if parameter in self._fired:
            raise NumericsError(
                f"layerwise: '{name}' got a second gradient in one backward pass after its update; expected one. A "
                "module that ran once in the first step runs several times now, in re-entrant checkpoints; use "
                "checkpoint(..., use_reentrant=False), or attach anew."
            )
        self._fired.add(parameter)
        return True

    def _wait(self, task: int) -> None:
        """Go behind all who have asked for the end of this pass by now."""
        Variable._execution_engine.queue_callback(partial(self._end, task))

    def _end(self, task: int) -> None:
        if self._task != task:
            return
        late, has_fired = list(self._late), self.has_fired
        try:
            if has_fired:  # torch.autograd.grad passes here too, and trains nothing
                self.on_end(late)
        finally:
            self._clear()

    def _before_forward(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.before_forward()
        if not self.is_known and torch.is_grad_enabled() and torch._C._current_graph_task_id() == -1:
            self._count_calls()

    def _count_calls(self) -> None:
        """Find the modules that run more than once before a backward pass, and whether checkpoints are re-entrant.

        Then autograd brings the gradient of a parameter in several pieces, else in one, when all its parts are there.
        """
        self._counting.close()

        def count(module: nn.Module, args: tuple[Any, ...]) -> None:
            if torch.compiler.is_compiling():  # one graph for the whole module: no call of it is a call to count
                return
            if module in inside and not _inside_chunk():
                self._is_reentrant = self._is_reentrant or not torch.is_grad_enabled()
                if module in self._called:
                    self._shared.update(module.parameters())
                self._called.add(module)

        count.only_observes = True  # type: ignore[attr-defined]
        inside = set(self.model.modules())
        # One hook for all modules, and none on them: others look at a module's hooks and take another path for them.
        self._counting.callback(register_module_forward_pre_hook(count).remove)

    def _after_forward(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._counting.close()
        if not torch.is_grad_enabled() or torch._C._current_graph_task_id() != -1:
            return
        outputs = tree_leaves(output)
        outputs += [each for leaf in outputs if is_dataclass(leaf) for each in tree_leaves(list(vars(leaf).values()))]
        for tensor in outputs:
            if isinstance(tensor, Tensor) and tensor.grad_fn is not None:
                tensor.register_hook(self._on_output_gradient)

    def _on_output_gradient(self, grad: Tensor) -> None:
        self.begin()


def _tied_parameters(model: nn.Module) -> set[Tensor]:
    """Return the parameters that stand at several places of the model."""
    seen: set[Tensor] = set()
    tied: set[Tensor] = set()
    for _, parameter in model.named_parameters(remove_duplicate=False):
        (tied if parameter in seen else seen).add(parameter)
    return tied


def _inside_checkpoint() -> bool:
    """Say whether this backward pass runs inside that of a re-entrant checkpoint."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "backward" and frame.f_code.co_filename == torch.utils.checkpoint.__file__:
            return True
        frame = frame.f_back
    return False


def _inside_chunk() -> bool:
    """Say whether this call is one of a computation in chunks, which hands a parameter's gradient out in one piece."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") in _CHUNKED:  # by name: the two are neighbours
            return True
        frame = frame.f_back
    return False

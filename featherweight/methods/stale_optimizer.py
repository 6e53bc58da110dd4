"""Optimizers that were built before a method exchanged or froze what they hold: their steps would train nothing.

torch steps over a parameter without a gradient in silence, whether it is left out on purpose or stands in no model any
more. So `apply` and `remove` note what they take out or freeze, and every optimizer is looked at before its step. What
a method exchanges later, in `after_step`, it exchanges in its optimizer too, and is not noted.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.weak import WeakIdKeyDictionary

from featherweight.errors import ConfigError
from featherweight.every_step import before_every_step

_noted: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""Parameter -> (its name, whether it is frozen and in the model still, what happened); none is kept alive by it."""


@contextmanager
def noting_exchanges(model: nn.Module, words: str) -> Iterator[None]:
    """Note the parameters that train now and that the block takes out of a model or freezes.

    Args:
        model: changed in the block.
        words: what changes it, for messages: "fw.apply of LoRA".
    """
    before = WeakIdKeyDictionary({p: name for name, p in model.named_parameters() if p.requires_grad})
    yield
    present = dict.fromkeys(map(id, model.parameters()))
    for parameter, name in before.items():
        if id(parameter) not in present:
            _noted[parameter] = (name, False, words)
        elif not parameter.requires_grad:
            _noted[parameter] = (name, True, words)
    for parameter in model.parameters():
        if parameter.requires_grad:
            _noted.pop(parameter, None)
    if _noted:
        before_every_step(_refuse_stale)


def _refuse_stale(optimizer: Optimizer, has_closure: bool) -> None:
    if not _noted or torch.compiler.is_compiling():
        return
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    notes = [note for parameter in held if parameter.grad is None and (note := _noted.get(parameter)) is not None]
    if not notes or (all(frozen for _, frozen, _ in notes) and any(parameter.requires_grad for parameter in held)):
        return
    name, frozen, words = next((note for note in notes if not note[1]), notes[0])
    what = "frozen" if frozen else "taken out of the model"
    raise ConfigError(
        f"{type(optimizer).__name__}.step: '{name}' was {what} by {words} after this optimizer had been built, so it "
        "would train nothing there; expected the parameters that the model trains now. Build the optimizer afterwards."
    )

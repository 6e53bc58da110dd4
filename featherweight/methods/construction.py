"""A method for models that do not exist yet: each is changed at the end of its construction.

For code that builds its models itself (a trainer's command line, a library's `from_pretrained`), where there is no
moment at which one could call `fw.apply`.
"""

import functools
from typing import Any, ClassVar

from torch import nn

from featherweight.errors import ConfigError
from featherweight.methods.method import Method, applied_methods, apply, check_method
from featherweight.report import Report


class ConstructionHandle:
    """Ends what `apply_to_new_models` began, by `remove` or at the end of a ``with`` block.

    Attributes:
        reports: one for each model that was changed, in order of their construction.
    """

    _active: ClassVar[list["ConstructionHandle"]] = []
    _plain_post_init: ClassVar[Any] = None

    def __init__(self, method: Method) -> None:
        self.reports: list[Report] = []
        self._method = method

    def remove(self) -> None:
        """Leave models alone that are built from now on; those that were built stay changed."""
        if self not in self._active:
            return
        self._active.remove(self)
        if not self._active:
            from transformers import PreTrainedModel

            PreTrainedModel.post_init = ConstructionHandle._plain_post_init

    def __enter__(self) -> "ConstructionHandle":
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def _begin(self) -> None:
        if not self._active:
            _watch_constructions()
        self._active.append(self)

    def _apply(self, model: nn.Module) -> None:
        """Apply the method to a finished model with an output head, unless it is a part of one that was changed."""
        head = getattr(model, "get_output_embeddings", lambda: None)()
        if not isinstance(head, nn.Module) or any(
            type(one) is type(self._method) for part in model.modules() for one in applied_methods(part)
        ):
            return
        self.reports.append(apply(model, self._method))


def apply_to_new_models(method: Method) -> ConstructionHandle:
    """Apply a method to every language model of transformers that is built from now on.

    Models with an output head are changed at the end of their construction, by their class, `from_config` or
    `from_pretrained` alike, and before their weights are loaded; others are left alone. Class, parameters and their
    names stay, so loading, saving and everything else work as before.

    Args:
        method: what to do, such as `fw.MsT()`; one that needs no weights and no calibration data.
    Returns:
        A handle: ``handle.remove()`` ends it, and so does a ``with`` block. Models that were built stay changed; undo
        that with `fw.remove`.
    Raises:
        ConfigError: if `method` is none or needs data, or one of its kind is waiting for new models already.
    Example:
        >>> import featherweight as fw
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = dict(hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=32)
        >>> with apply_to_new_models(fw.MsT()) as handle:
        ...     model = LlamaForCausalLM(LlamaConfig(**sizes))
        >>> len(handle.reports), fw.methods.applied_methods(model) == [fw.MsT()]
        (1, True)
    """
    check_method(method)
    if method.needs_calibration:
        raise ConfigError(
            f"apply_to_new_models: method={method!r} needs calibration data, and a model under construction has no "
            "weights yet; expected a method that needs none. Build the model, then call fw.apply with calibration=."
        )
    for other in ConstructionHandle._active:
        if type(other._method) is type(method):
            raise ConfigError(
                f"apply_to_new_models: method={type(method).__name__} is waiting for new models already "
                f"({other._method!r}); expected it once. Call remove() of the handle that you got."
            )
    handle = ConstructionHandle(method)
    handle._begin()
    return handle


def _watch_constructions() -> None:
    """Let the last act of a construction in transformers tell every active handle."""
    from transformers import PreTrainedModel

    plain = PreTrainedModel.post_init

    @functools.wraps(plain)
    def post_init(self: Any) -> None:
        plain(self)
        for handle in list(ConstructionHandle._active):
            handle._apply(self)

    ConstructionHandle._plain_post_init = plain
    PreTrainedModel.post_init = post_init

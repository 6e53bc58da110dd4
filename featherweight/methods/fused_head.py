"""The loss of a causal language model of transformers without logits.

The model's own `forward` runs unchanged. For the time of the call its output head hands the hidden states over and
returns a placeholder on the meta device, and its loss function computes the loss from the hidden states. So auxiliary
losses, keyword arguments and outputs are the model's own; what would look at the placeholder's values fails loudly.
A head whose calls others listen in on or change by hooks gets all hidden states at once, as it would by itself.
Shapes: B batch, L sequence, D hidden, V vocabulary.
"""

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from featherweight.errors import ConfigError
from featherweight.methods.forward_patch import is_patched, original_forward, settings_of
from featherweight.methods.probe import undisturbed
from featherweight.nn.hooks import is_hooked
from featherweight.nn.linear_cross_entropy import linear_cross_entropy, linear_logprobs

# Where configurations keep what is done to the logits: a soft cap, a factor, a divisor.
_SOFTCAP = ("final_logit_softcapping",)
_FACTOR = ("logit_scale",)
_DIVISOR = ("logits_scaling",)
_NO_LOSS_FUNCTION = "does not ask its loss_function for the loss"


@dataclass(frozen=True)
class HeadSettings:
    """What the loss of a model needs to know."""

    chunk_size: int | Literal["auto"]
    in_eval: bool
    accum_dtype: torch.dtype | None


def find_causal_model(model: nn.Module) -> tuple[str, Any] | None:
    """Return name and module of the causal language model inside a model, or None; PEFT puts it further down."""
    for name, module in model.named_modules():
        named = getattr(module, "get_output_embeddings", None)
        is_wrapper = not hasattr(type(module), "loss_function")
        if not is_wrapper and callable(named) and isinstance(named(), nn.Module):
            return name, module
    return None


def head_settings(
    model: Any, *, chunk_size: int | Literal["auto"], in_eval: bool, accum_dtype: torch.dtype | None
) -> tuple[HeadSettings, str | None]:
    """Return the settings for a model, and why its loss must be left alone, or None."""
    settings = HeadSettings(chunk_size, in_eval, accum_dtype)
    if not _is_plain_loss(model):
        return settings, f"its loss is {getattr(model.loss_function, '__name__', 'its own')}, not that of causal models"
    if (reason := _must_run_at_once(model.get_output_embeddings())) is not None:
        return settings, f"its head {reason}"
    return settings, _mismatch(model, settings)


def computes_loss_alone(model: nn.Module) -> bool:
    """Tell whether a model that is given labels returns their loss and no logits, in the mode in which it is now."""
    for module in model.modules():
        if is_patched(module) and isinstance(settings_of(module), HeadSettings):
            return module.training or cast(HeadSettings, settings_of(module)).in_eval
    return False


def causal_forward(model: Any, *args: Any, **kwargs: Any) -> Any:
    """Run a model's own forward, without logits if it is to compute a loss."""
    settings: HeadSettings = settings_of(model)
    forward = original_forward(model)
    if not _wants_loss_alone(model, settings, forward, args, kwargs):
        return forward(*args, **kwargs)
    with _loss_from_hidden_states(model, settings) as losses:
        output = forward(*args, **kwargs)
    if not losses:
        raise ConfigError(
            f"MsT: {type(model).__name__} {_NO_LOSS_FUNCTION}; expected a model whose loss can be computed from hidden "
            "states. Use MsT(head=False)."
        )
    return _without_placeholders(output)


def _wants_loss_alone(
    model: Any, settings: HeadSettings, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> bool:
    if not (model.training or settings.in_eval) or not _is_plain_loss(model):
        return False
    given = inspect.signature(forward).bind_partial(*args, **kwargs).arguments
    keep = given.get("logits_to_keep", 0)
    keeps_all = not isinstance(keep, Tensor) and keep == 0
    if given.get("labels") is None or not keeps_all:
        return False
    if (reason := _must_run_at_once(model.get_output_embeddings())) is not None:
        warnings.warn(
            f"MsT: the output head of {type(model).__name__} {reason}, so the loss is computed with all logits, as "
            "without MsT. Take that off the head to save their memory.",
            stacklevel=3,
        )
        return False
    return True


def _must_run_at_once(head: nn.Module) -> str | None:
    """Return what a head has that may tell one call with all tokens from a call for each chunk; None if nothing."""
    if is_hooked(head):
        return "has hooks"
    parametrizations = getattr(head, "parametrizations", None)
    if isinstance(parametrizations, nn.Module) and any(True for _ in parametrizations.buffers()):
        return "has a parametrization that changes with every call"  # the power iterations of spectral_norm
    return None


def causal_logprobs(model: nn.Module, labels: Tensor, **inputs: Any) -> Tensor:
    """Return the log-probability that a causal language model gives each label, without the logits of a whole sequence.

    Args:
        model: wrapped or not; its own forward runs, with a placeholder in place of its logits.
        labels: (B, L) int64; token t predicts label t + 1; -100 does not count.
        inputs: what the model takes: input_ids, position_ids, attention_mask.
    Returns:
        (B, L) float32 (float64 for such models), at most 0; 0 for ignored labels and the last token of a row.
    Raises:
        ConfigError: if the model has no output head that gives logits.
    Cost: logits of one chunk of tokens at a time, computed again in the backward pass.
    """
    found = find_causal_model(model)
    if found is None:
        raise ConfigError(
            f"causal_logprobs: model={type(model).__name__} has no output head; expected a causal language model of "
            "transformers. Choose another model."
        )
    causal = found[1]
    head: nn.Module = causal.get_output_embeddings()
    softcap, scale = _logit_changes(causal)
    with _handing_over(head) as hidden_states:
        model(**inputs, use_cache=False)
    if not hidden_states:
        raise ConfigError(
            f"causal_logprobs: {type(causal).__name__} does not call its output head; expected a causal language model "
            "of transformers. Choose another model."
        )
    hidden_BLD = hidden_states[0]
    return linear_logprobs(hidden_BLD, head, labels, shift=True, logit_softcap=softcap, logit_scale=scale)


def _logit_changes(model: Any) -> tuple[float | None, float]:
    """Return the soft cap and the factor of a model's logits; read late, as a configuration can be changed."""
    config = model.config.get_text_config()
    softcap, factor, divisor = (_first(config, names) for names in (_SOFTCAP, _FACTOR, _DIVISOR))
    return softcap, (factor or 1.0) / (divisor or 1.0)


@contextmanager
def _handing_over(head: nn.Module) -> Iterator[list[Tensor]]:
    """Let an output head hand its hidden states over, once, and return a placeholder on the meta device."""
    previous = vars(head).get("forward")
    hidden_states: list[Tensor] = []

    def hand_over(hidden_BLD: Tensor) -> Tensor:
        _set(head, "forward", previous)  # a loss may call it, and so may a second call of the model's
        hidden_states.append(hidden_BLD)
        return torch.empty((*hidden_BLD.shape[:-1], _vocab_size(head)), dtype=hidden_BLD.dtype, device="meta")

    try:
        head.forward = hand_over
        yield hidden_states
    finally:
        _set(head, "forward", previous)


@contextmanager
def _loss_from_hidden_states(model: Any, settings: HeadSettings) -> Iterator[list[Tensor]]:
    """Exchange output head and loss function of a model for the time of one forward pass; give the losses so made."""
    head: nn.Module = model.get_output_embeddings()
    softcap, scale = _logit_changes(model)
    own_loss: Callable[..., Tensor] = model.loss_function
    previous_loss = vars(model).get("_loss_function")
    losses: list[Tensor] = []

    def loss(logits: Tensor, labels: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not hidden_states or logits.device.type != "meta":  # real logits: of another head or another call
            return own_loss(logits, labels, *args, **kwargs)
        shift_labels = kwargs.get("shift_labels")
        found = linear_cross_entropy(
            hidden_states[0],
            head,
            None if shift_labels is not None else labels,
            shift=shift_labels is None,
            shift_labels=shift_labels,
            num_items_in_batch=kwargs.get("num_items_in_batch"),
            ignore_index=kwargs.get("ignore_index", -100),
            logit_softcap=softcap,
            logit_scale=scale,
            chunk_size=settings.chunk_size,
            accum_dtype=settings.accum_dtype,
        )
        losses.append(found.detach())
        return found

    with _handing_over(head) as hidden_states:
        try:
            model._loss_function = loss
            yield losses
        finally:
            _set(model, "_loss_function", previous_loss)


def _set(module: nn.Module, name: str, value: Any) -> None:
    if value is not None:
        setattr(module, name, value)
    elif name in vars(module):
        delattr(module, name)


def _without_placeholders(output: Any) -> Any:
    if isinstance(output, tuple):
        return tuple(one for one in output if not (isinstance(one, Tensor) and one.device.type == "meta"))
    return type(output)(**{name: value for name, value in output.items() if name != "logits"})


def _is_plain_loss(model: Any) -> bool:
    from transformers.loss.loss_utils import ForCausalLMLoss

    return model.loss_function is ForCausalLMLoss


def _vocab_size(head: nn.Module) -> int:
    size = getattr(head, "out_features", None)
    return size if isinstance(size, int) else cast(Tensor, head.weight).shape[0]


def _first(config: Any, names: tuple[str, ...]) -> float | None:
    return next((float(value) for name in names if (value := getattr(config, name, None)) is not None), None)


def _mismatch(model: Any, settings: HeadSettings) -> str | None:
    """Compare the loss both ways on five made-up hidden states; return why ours is wrong for this model, or None.

    The model runs as it is, so its outputs have all fields that its loss may ask for (router logits, features of
    images); what reaches its head is replaced.
    """
    head: nn.Module = model.get_output_embeddings()
    weight = next(head.parameters())
    embedding = model.get_input_embeddings().weight
    if weight.device.type == "meta" or isinstance(weight, FakeTensor) or embedding.device.type == "meta":
        return None
    labels_BL = torch.tensor([[1, 2, -100, 0, 1]], device=embedding.device) % min(_vocab_size(head), len(embedding))
    arguments = {"input_ids": labels_BL, "labels": labels_BL.clone()}
    arguments["labels"][0, 2] = -100
    try:
        with torch.no_grad(), undisturbed(model):
            with _made_up_input(head):
                expected = model(**arguments).loss
            with _made_up_input(head), _loss_from_hidden_states(model, settings) as losses:
                found = model(**arguments).loss
    except Exception as error:
        return f"its forward does not work without logits ({type(error).__name__}: {str(error)[:80]})"
    if not losses:
        return f"it {_NO_LOSS_FUNCTION}"
    tolerance = 1e-4 if weight.dtype.itemsize >= 4 else 5e-2
    if abs(float(found - expected)) <= tolerance * max(1.0, abs(float(expected))):
        return None
    return f"its loss is {float(expected):.4f} where hidden states and head give {float(found):.4f}"


@contextmanager
def _made_up_input(head: nn.Module) -> Iterator[None]:
    """Give a head hidden states whose logits have a spread of ten: that shows a soft cap or a factor unknown to us."""

    def replace(module: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
        (hidden_BLD,) = args
        numbers = torch.linspace(-3, 3, hidden_BLD.numel(), device=hidden_BLD.device).mul(7).sin()
        handle.remove()  # the head itself is asked for the spread, and later by the loss
        made_up_BLD = numbers.view_as(hidden_BLD).to(hidden_BLD.dtype)
        spread = original(made_up_BLD).float().std()
        return ((made_up_BLD * (10 / spread.clamp(min=1e-6))).to(hidden_BLD.dtype),)

    original, handle = head.forward, head.register_forward_pre_hook(replace)
    try:
        yield
    finally:
        handle.remove()

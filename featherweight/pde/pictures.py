"""Pictures of fields: input, truth, prediction and error side by side, and spectra of truth and errors."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from featherweight.config import write_atomically
from featherweight.errors import ShapeError
from featherweight.pde.files import write_torch
from featherweight.pde.metrics import error_by_shell, relative_l2

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Shown:
    """What pictures show of one run; `save` keeps it in the run's folder, so that several runs can be drawn together.

    Args:
        x: (k, s_1, .., s_d) inputs of the first samples.
        y: solutions, alike.
        prediction: of the run, alike.
        truth: (K,) spectrum of all solutions, see `error_by_shell`.
        error: (K,) spectrum of all errors.
    """

    x: Tensor
    y: Tensor
    prediction: Tensor
    truth: Tensor
    error: Tensor

    @classmethod
    def of(cls, x: Tensor, y: Tensor, prediction: Tensor, *, samples: int = 3) -> "Shown":
        """Return what pictures show of (n, s_1, .., s_d) inputs, solutions and predictions."""
        truth, error = error_by_shell(prediction, y)
        return cls(x[:samples].clone(), y[:samples].clone(), prediction[:samples].clone(), truth, error)

    def save(self, folder: Path) -> None:
        """Write `fields.pt`."""
        write_torch(folder / "fields.pt", vars(self))

    @classmethod
    def load(cls, folder: Path) -> "Shown | None":
        """Read what `save` wrote; None if it is not there."""
        path = folder / "fields.pt"
        return cls(**torch.load(path, weights_only=True)) if path.is_file() else None


def draw_runs(folder: Path, runs: Mapping[str, Shown]) -> list[Path]:
    """Draw `fields.png`, for fields with one or two axes, and `spectra.png` of one run or of several side by side.

    Returns:
        The files made.
    """
    first = next(iter(runs.values()))
    paths = [folder / "spectra.png"]
    if first.y.ndim <= 3:
        paths.insert(0, folder / "fields.png")
        draw_fields(paths[0], first.x, first.y, {name: one.prediction for name, one in runs.items()})
    _draw_shells(paths[-1], first.truth, {name: one.error for name, one in runs.items()})
    return paths


def draw_fields(path: Path, x: Tensor, y: Tensor, predictions: Mapping[str, Tensor], *, samples: int = 3) -> None:
    """Draw input, truth, and for each method its prediction and error, one row for each sample.

    Args:
        path: a .png file.
        x: (n, s) or (n, s, s) inputs.
        y: solutions, alike.
        predictions: name of a method -> predictions, alike.
        samples: rows; the first so many samples.
    Raises:
        ShapeError: for fields with more than two axes.
    """
    if y.ndim not in (2, 3) or x.ndim not in (2, 3):
        raise ShapeError(
            f"draw_fields: y={tuple(y.shape)} has {y.ndim - 1} axes; expected (n, s) or (n, s, s). Pass one channel, "
            f"and a "
            "slice of fields with three axes."
        )
    rows = min(samples, len(y))
    panels = 2 + 2 * len(predictions)
    figure = _figure(2.5 * panels, 2.25 * rows + 0.3)
    axes = figure.subplots(rows, panels, squeeze=False)
    for row in range(rows):
        _panel(axes[row, 0], x[row], "input" if row == 0 else "", None)
        limits = float(y[row].min()), float(y[row].max())
        _panel(axes[row, 1], y[row], "truth" if row == 0 else "", limits)
        errors = {name: one[row] - y[row] for name, one in predictions.items()}
        largest = max(float(error.abs().max()) for error in errors.values())
        for column, (name, one) in enumerate(predictions.items()):
            share = float(relative_l2(one[row : row + 1], y[row : row + 1]))
            _panel(axes[row, 2 + 2 * column], one[row], f"{name}" if row == 0 else "", limits)
            # One scale for the errors of all methods, so that colours can be compared.
            title = f"error, {share:.2%}" if row else f"error, rel. L2 {share:.2%}"
            _panel(axes[row, 3 + 2 * column], errors[name], title, (-largest, largest), "RdBu_r")
    _save(figure, path)


def draw_spectra(path: Path, y: Tensor, predictions: Mapping[str, Tensor]) -> None:
    """Draw the spectrum of the truth, and of each method's error, over the wavenumber.

    Args:
        path: a .png file.
        y: (n, s_1, .., s_d) solutions.
        predictions: name of a method -> predictions, alike.
    """
    spectra = {name: error_by_shell(one, y) for name, one in predictions.items()}
    _draw_shells(path, next(iter(spectra.values()))[0], {name: error for name, (_, error) in spectra.items()})


def _draw_shells(path: Path, truth: Tensor, errors: Mapping[str, Tensor]) -> None:
    figure = _figure(6.4, 4.0)
    axes = figure.subplots()
    shells = torch.arange(len(truth)).numpy()
    axes.semilogy(shells, truth.numpy(), color="black", linewidth=1.5, label="truth")
    for name, error in errors.items():
        axes.semilogy(shells, error.numpy(), linewidth=1.2, label=f"error of {name}")
    axes.set_xlabel("wavenumber |k|")
    axes.set_ylabel("mean square in the shell")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    _save(figure, path)


def _panel(axes: Any, field: Tensor, title: str, limits: tuple[float, float] | None, colours: str = "viridis") -> None:
    axes.set_title(title, fontsize=9)
    low, high = limits or (None, None)
    if field.ndim == 1:
        axes.plot((torch.arange(len(field)) / len(field)).numpy(), field.numpy(), linewidth=1)
        axes.tick_params(labelsize=7)
        if limits and high is not None and low is not None and high > low:
            axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
        return
    # Axis 0 of a field is x: it runs to the right.
    image = axes.imshow(field.T.numpy(), origin="lower", cmap=colours, vmin=low, vmax=high, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    bar = axes.figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03)
    bar.ax.tick_params(labelsize=6)
    bar.formatter.set_powerlimits((-2, 3))
    bar.ax.yaxis.get_offset_text().set_fontsize(6)


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=130)
    FigureCanvasAgg(figure)
    return figure


def _save(figure: "Figure", path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_atomically(path, buffer.getvalue())

"""Options of the task: what stands beside `name: pde` in a recipe."""

from typing import Annotated, Any, Literal

from pydantic import Field

from featherweight.config import Config
from featherweight.training.task import Words

_LOSS_WORDS = {"l2": "relative L2 error", "h1": "relative H1 error", "h1_periodic": "relative H1 error, periodic"}


class PdeConfig(Config):
    """Options of the task."""

    data: str = "darcy"
    """A folder of `fw pde generate`, a file of training pairs, or the name of a problem (darcy, burgers,
    navier_stokes, advection, reaction_diffusion, shallow_water), whose samples are then generated at the start."""
    test_data: list[str] = []
    """Files to test on; the first one counts for `held_out_loss`, others at another resolution test the transfer to it.
    Empty: the folder's test files, or the last tenth of the training file."""
    resolution: int | None = Field(default=None, ge=4)
    """Of a folder with several, or of generated samples; None takes the only one, or the problem's default."""
    problem_options: dict[str, Any] = {}
    """Options of a generated problem, such as viscosity."""
    data_seed: int = Field(default=0, ge=0)
    """Seed of generated samples; apart from the run's seed, so that runs with different seeds see the same data."""
    n_train: int | None = Field(default=None, ge=1)
    """Training samples; None takes all (1000 if generated)."""
    n_test: int | None = Field(default=None, ge=1)
    """Test samples; None takes all (200 if generated)."""
    x_key: str | None = None
    """Name of the inputs in the files; None tries the usual ones."""
    y_key: str | None = None
    """Name of the solutions in the files; None tries the usual ones."""
    x_index: int | None = None
    """Which of several stored times of the inputs; None takes all, of one array over time the first."""
    y_index: int | None = None
    """Which of several stored times of the solutions; None takes all, of one array over time the last."""
    x_axes: str | None = None
    """Axes of the stored inputs, one letter each: n samples, c channels, t times, x y z points. None: known from the
    file's coordinates or from its shapes; where these leave a doubt, the file is refused."""
    y_axes: str | None = None
    """Axes of the stored solutions, alike."""
    periodic: bool | None = None
    """Whether fields wrap around, for the derivatives of the H1 error; None: not if the folder or the training file has
    darcy in its name."""
    model: Literal["fno", "neuraloperator"] = "fno"
    """Our own network, or that of the package neuraloperator."""
    n_modes: list[Annotated[int, Field(ge=1)]] = Field(default=[16, 16], min_length=1, max_length=3)
    """Kept Fourier modes an axis, both signs counted."""
    hidden_channels: int = Field(default=32, ge=1)
    """Width."""
    n_layers: int = Field(default=4, ge=1)
    """Fourier layers."""
    projection_channel_ratio: float = Field(default=2, gt=0)
    """Hidden width of the projection, over the width."""
    domain_padding: float = Field(default=0.0, ge=0, lt=1)
    """Share of each axis added behind the field, for problems that are not periodic."""
    loss: Literal["h1", "h1_periodic", "l2"] = "h1"
    """Training loss, a relative error; h1_periodic takes derivatives around the boundary, as published runs do."""

    def words(self) -> Words:
        """Return what the task counts and measures."""
        return Words("samples", _LOSS_WORDS[self.loss], ("l2",) if self.loss != "l2" else ("h1",))

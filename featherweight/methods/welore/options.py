"""Options of WeLore: which matrices are cut, to which budget, and what trains afterwards."""

from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from featherweight.methods.method import Method


class WeLoreOptions(Method):
    """What a plan asks of `WeLore`, which does the work."""

    needs_pretrained: ClassVar[bool] = True

    rank_reduction: float | None = None
    """Share of all ranks to drop, in (0, 1); it counts ranks and not parameters. Without any budget: 0.5."""
    param_ratio: float | None = Field(default=None, gt=0, lt=1)
    """Parameters of the whole model that stay, as a share of what it has."""
    max_bytes: int | None = Field(default=None, gt=0)
    """Bytes of the whole model that stay at most."""
    threshold: float | None = Field(default=None, gt=0, le=1)
    """The cut on the normalised singular values itself, as in the official scripts."""
    rank_pattern: dict[str, int] | None = None
    """Ranks by module name; modules that are not named stay as they are."""
    allocation: Literal["threshold", "energy", "uniform"] | None = None
    """How ranks are shared out: the paper's threshold, the energy of each matrix, or alike. None: threshold for
    rank_reduction, energy for param_ratio and max_bytes."""
    energy_floor: float | None = Field(default=None, gt=0, lt=1)
    """Share of its energy that every matrix keeps at least, whatever the budget says; less than the budget goes then.
    Kinds with flat spectra so keep nearly all of their ranks. Without data a small model needs 0.9999."""
    scope: Literal["all", "lrc"] | None = None
    """Cut all matrices, or only those that lose at least half of their rank (LRC). None: lrc where train says so."""
    method: Literal["plain", "whitened", "refit"] = "plain"
    """plain: the weights alone. whitened: least error of the outputs on calibration data. refit: also each left factor
    anew, on the inputs that the compressed layers before it give."""
    storage: Literal["auto", "dense", "factored", "pivoted"] = "auto"
    """How a cut matrix is kept; auto: the fewest bytes, or factors where train is given."""
    train: Literal["lrc", "nlrc", "all"] | None = None
    """What stays trainable: the LRCs, the other selected matrices, or everything. None changes nothing."""
    train_norms: bool = True
    """With train lrc or nlrc, the norms train along, as in the official code."""
    min_dim: int = Field(default=64, ge=2)
    """Matrices with a smaller side are left alone."""
    target_modules: str | list[str] = "all-linear"
    """Modules to cut: all-linear (without the output head), a regular expression, or a list of names."""
    exclude_modules: str | list[str] = ["lm_head"]
    """Modules left out, same forms."""

    @field_validator("rank_reduction")
    @classmethod
    def _is_a_share(cls, value: float | None) -> float | None:
        if value is not None and not 0 < value < 1:
            raise ValueError(
                "is out of range; expected 0 < rank_reduction < 1. It is the share of all ranks that is dropped: set "
                "it to 0.5, for example."
            )
        return value

    @model_validator(mode="after")
    def _one_budget(self) -> "WeLoreOptions":
        budgets = ("rank_reduction", "param_ratio", "max_bytes", "threshold", "rank_pattern")
        given = [name for name in budgets if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(
                f"{given[0]}={getattr(self, given[0])} and {given[1]}={getattr(self, given[1])} are two budgets; "
                "expected one of them. Remove the other."
            )
        if self.effective_scope == "lrc" and (self.param_ratio is not None or self.max_bytes is not None):
            raise ValueError("scope=lrc has no budget in parameters or bytes; expected rank_reduction. Use that.")
        return self

    @property
    def effective_scope(self) -> str:
        """Scope after the default is resolved."""
        return self.scope or ("lrc" if self.train in ("lrc", "nlrc") else "all")

    @property
    def needs_calibration(self) -> bool:
        """Whether `method` looks at data."""
        return self.method != "plain"

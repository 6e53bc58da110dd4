"""Every option of every optimizer, declared once: name, type, range, default and meaning.

A family of optimizers is one `TypedDict`. From it follow the keyword arguments of the presets (``Unpack``, so editors
and type checkers know them), what `help()` shows, the check of a parameter group, the keys of a recipe (`build.py`),
and their words in the docs. A `TypedDict` is the source, and not a pydantic class, because type checkers take keyword
arguments from nothing else; the pydantic classes of recipes are made from it. A preset states only where its defaults
differ. Nothing here imports torch, so that a recipe is judged at once.
"""

import ast
import inspect
import math
import operator
import sys
from collections.abc import Iterable, Mapping
from functools import lru_cache
from numbers import Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypedDict, Union, get_args, get_origin, get_type_hints

from pydantic import Field
from pydantic.fields import FieldInfo

from featherweight.linalg.limits import MAX_WORKSPACE_BYTES
from featherweight.optim.policies.lazy import LazyRefresh
from featherweight.optim.policies.sides import ProjType
from featherweight.optim.tucker.kinds import TensorKind

Decay = Annotated[float, Field(ge=0, lt=1)]
Bits = Literal[32, 16, 8, 4]

# ---- what all have


class StepOptions(TypedDict, total=False):
    """Options of every optimizer."""

    lr: Annotated[float, Field(1e-3, ge=0)]
    """Learning rate; in a recipe at the top of the schedule."""
    betas: Annotated[tuple[Decay, Decay], Field((0.9, 0.999))]
    """Decay of the first and second moment, each in [0, 1)."""
    eps: Annotated[float, Field(1e-8, ge=0)]
    """Added to the root of the second moment."""
    weight_decay: Annotated[float, Field(0.0, ge=0)]
    """Decoupled weight decay of every parameter; acts with factor lr."""
    state_bits: Annotated[Bits, Field(32)]
    """Bits of each stored moment element: 16 is bfloat16, 8 and 4 are blockwise dynamic codes; tensors below 4096
    elements keep 32."""
    stochastic_rounding: Annotated[bool, Field(True)]
    """Write bfloat16 weights and moments, and int8 weights, with stochastic rounding instead of to nearest."""
    seed: Annotated[int, Field(0)]
    """Of all random numbers: bases, periods, rounding; a run repeats bit by bit."""


class OfficialOptions(TypedDict, total=False):
    """Where published code differs from torch.optim."""

    eps_mode: Annotated[Literal["torch", "official"], Field("torch")]
    """Place of eps: torch's, or official, as galore-torch and old Hugging Face AdamW, where it acts before bias
    correction."""
    decay_order: Annotated[Literal["before", "after"], Field("before")]
    """Decay before the update (torch.optim) or after it (galore-torch)."""


class AdamWOptions(StepOptions, OfficialOptions, total=False):
    """Options of full-rank AdamW."""


# ---- matrices


class ProjectedOptions(StepOptions, total=False):
    """Options of every optimizer that projects matrices."""

    rank: Annotated[int | float, Field(128, gt=0)]
    """R; a fraction of min(M, N) if it is a float up to 1. A matrix for which R saves nothing keeps full-rank
    moments."""
    update_proj_gap: Annotated[int, Field(200, ge=1)]
    """Optimizer steps between refreshes of a basis."""
    scale: Annotated[float, Field(1.0, gt=0)]
    """Factor of the update of projected matrices; their learning rate is lr * scale (Apollo: lr * sqrt(scale))."""
    proj_type: Annotated[ProjType, Field("std")]
    """Side of the basis: std (the smaller side), reverse_std, left, right, full (both), or min_memory (the side that
    needs fewer bytes, kept only if it holds the energy of the next batch nearly as well)."""


class FitOptions(TypedDict, total=False):
    """How bases come about."""

    basis_method: Annotated[
        Literal["auto", "svd", "gram", "randomized", "subspace_iteration", "random", "gaussian"], Field("auto")
    ]
    """How a basis is computed: auto (randomized SVD at first, then one warm subspace iteration a refresh), svd (exact),
    gram, randomized, subspace_iteration; random (orthonormal) and gaussian look at no gradient, are drawn anew from the
    seed whenever they are needed, and take no state."""
    moment_policy: Annotated[Literal["rotate", "keep", "reset"], Field("rotate")]
    """What a refresh does to the moments: rotate them into the new basis, keep them (published code), reset them."""


class StoredBasisOptions(TypedDict, total=False):
    """How bases are stored."""

    basis_bits: Annotated[Bits | None, Field(None)]
    """Bits of each basis element; None: 16 for 16-bit weights, else 32 (tensors: 32). Beside bfloat16 weights products
    with bases of 16 bits or fewer run in bfloat16."""


class StaggerOptions(TypedDict, total=False):
    """When refreshes fall."""

    stagger: Annotated[bool, Field(True)]
    """Spread the refreshes over the gap, so that no step is slow."""


class FittedOptions(ProjectedOptions, StoredBasisOptions, FitOptions, StaggerOptions, total=False):
    """Options of optimizers whose bases are fitted to gradients."""


class EarlyOptions(TypedDict, total=False):
    """Refreshes at the beginning."""

    early_refresh: Annotated[bool, Field(False)]
    """Refresh also at (about) the steps 10, 25, 50 and 100: the gradient turns fast at first."""


class LazyOptions(EarlyOptions, total=False):
    """Options of GaLore and Q-GaLore."""

    basis_renorm: Annotated[bool, Field(False)]
    """Give the columns of an 8- or 4-bit basis unit length (2 more bytes a column); without, rounding to 4 bits changes
    the length of an update by up to a sixth."""
    lazy: Annotated[LazyRefresh | bool | None, Field(None)]
    """Refresh a matrix less often while its subspace stands still: true, false, or the options of LazyRefresh."""


class ResidualOptions(TypedDict, total=False):
    """What is done with the rest of the gradient."""

    residual: Annotated[Literal["fira", "apollo", "apollo_tensor", "equalized"] | None, Field(None)]
    """What becomes of the gradient outside the subspace: None drops it, fira adds it, scaled like the core; apollo and
    apollo_tensor scale the gradient itself, by channel or as a whole, in the place of the core's update; equalized adds
    its sign. All but None take a temporary of the gradient's size."""
    residual_weight: Annotated[float, Field(0.3, ge=0)]
    """Factor of the equalized residual, beside lr."""


class RuleOptions(TypedDict, total=False):
    """The inner rule."""

    rule: Annotated[Literal["adamw", "adafactor", "sgd", "muon"], Field("adamw")]
    """Inner rule: adamw, adafactor, sgd (momentum ``betas[0]``) or muon."""


class GaLoreOptions(FittedOptions, LazyOptions, ResidualOptions, RuleOptions, OfficialOptions, total=False):
    """Options of GaLore."""


class QGaLoreOptions(FittedOptions, LazyOptions, total=False):
    """Options of Q-GaLore."""


class FiraOptions(FittedOptions, EarlyOptions, ResidualOptions, total=False):
    """Options of Fira."""


class ApolloOptions(ProjectedOptions, FitOptions, ResidualOptions, total=False):
    """Options of APOLLO and APOLLO-Mini."""


class LDAdamOptions(ProjectedOptions, StoredBasisOptions, total=False):
    """Options of LDAdam."""

    basis_smoothing: Annotated[float, Field(0.0, ge=0, lt=1)]
    """Share of the first moment in the matrix that is iterated."""
    error_feedback: Annotated[bool, Field(False)]
    """Keep what the projection loses for the next step, in a tensor of each weight's size."""


class GUMOptions(FittedOptions, total=False):
    """Options of GUM, low-rank Muon."""

    momentum: Annotated[Decay, Field(0.95)]
    """Decay of the moment of projected matrices; `betas` are those of AdamW for all others."""
    full_rank_probability: Annotated[Decay, Field(0.0)]
    """Share of the periods in which a matrix follows the complement of its subspace; 0 is plain low-rank Muon, biased.
    Stacked matrices never do."""


class ScaleOptions(StepOptions, total=False):
    """Options of SCALE."""

    momentum: Annotated[Decay, Field(0.9)]
    """Decay of the momentum of the output head, the only state of a matrix; 0 for none."""
    normalize: Annotated[Literal["rows", "columns"], Field("rows")]
    """What gets one length: rows (of out_features in nn.Linear), or columns, as in an embedding."""
    rule: Annotated[Literal["scale"], Field("scale")]
    """Inner rule."""


class AdafactorOptions(FittedOptions, total=False):
    """Options of GaLore with Adafactor's rule."""

    beta1: Annotated[Decay | None, Field(0.9)]
    """Decay of the first moment, ``betas[0]`` under another name; None keeps none."""


# ---- tensors


class TensorOptions(AdamWOptions, StoredBasisOptions, StaggerOptions, total=False):
    """Options of Tensor-GaLore and TensorGRaD."""

    rank: Annotated[float | int | list[int] | list[float] | tuple[float, ...] | Literal["auto"], Field(0.25)]
    """Share of the entries that the core has; a whole number that caps the rank of every mode; a list with a share of
    its size or a rank for each mode; or auto: ranks that follow the spectrum of each tensor's first gradient. Of matrix
    and slices, for the one side that has a basis."""
    rank_budget: Annotated[float, Field(0.25, gt=0, le=1)]
    """Largest share of the entries that a core has whose ranks are auto, or one entry for each frequency where these
    have no basis. Such a tensor is left as it is until its first gradient that is not zero."""
    update_proj_gap: Annotated[int, Field(200, ge=1)]
    """Optimizer steps between refreshes of the bases."""
    scale: Annotated[float | Literal["auto"], Field(1.0)]
    """Factor of the update of projected tensors; auto gives it the root mean square of AdamW's."""
    proj_type: Annotated[TensorKind, Field("tucker")]
    """Which modes get a basis: tucker (all), tucker_channels (the first two), matrix (one side of the unfolding of the
    first `first_dims` modes: GaLore), slices (each frequency), select (the first two rotated, of the others the
    strongest indices)."""
    rank_counts: Annotated[Literal["core", "state", "tensorgrad", "tensorly"], Field("core")]
    """What a share counts; see `featherweight.linalg.tucker_ranks`."""
    first_dims: Annotated[int, Field(1, ge=1)]
    """Modes in the rows of the unfolding of matrix."""
    min_numel: Annotated[int, Field(1000, ge=1)]
    """Smaller tensors are not projected."""
    basis_method: Annotated[Literal["auto", "st_hosvd", "hooi", "subspace", "randomized"], Field("auto")]
    """How bases are computed: auto and st_hosvd (sequential truncation), hooi and subspace (warm), randomized."""
    moment_policy: Annotated[Literal["rotate", "align", "keep", "reset"], Field("rotate")]
    """What a refresh does to the moments: rotate them, align the new bases to the old ones and keep them, keep
    (published code), reset."""
    skip_tol: Annotated[float, Field(0.0, ge=0, lt=1)]
    """Leave out a refresh where the share of energy inside the old subspace has changed by less than this."""
    complex_mode: Annotated[Literal["modulus", "real_pair"], Field("modulus")]
    """One second moment for a complex number (12 instead of 16 bytes, and a step that turns with the phase), or one for
    each of its parts (torch.optim)."""
    complex_pair: Annotated[bool, Field(False)]
    """Real parameters with a last axis of 2 are complex numbers."""
    sparse_ratio: Annotated[float, Field(0.0, ge=0, lt=1)]
    """Share of the entries with moments of their own, outside of the core (TensorGRaD)."""
    sparse_select: Annotated[Literal["topk", "randk", "probability"], Field("topk")]
    """How they are chosen: by modulus, at random (no indices are kept), or in proportion to the modulus."""
    sparse_order: Annotated[Literal["low_rank_first", "sparse_first"], Field("low_rank_first")]
    """Which branch sees the gradient first; the other gets the rest."""
    sparse_weight: Annotated[float, Field(1.0, ge=0)]
    """Factor of their update, beside lr."""
    sparse_reset: Annotated[bool, Field(True)]
    """Zero the moments of the entries when others are chosen."""
    residual: Annotated[Literal["auto", "equalized"] | None, Field(None)]
    """What becomes of the gradient outside the subspace: None drops it; equalized adds it without state, each frequency
    of a complex tensor at one size, of a real one the sign; auto does so with complex tensors under rule=adamw, and
    drops it of all others. Needs whole gradients."""
    residual_weight: Annotated[float, Field(0.3, ge=0)]
    """Factor of the equalized residual, beside lr."""
    max_workspace_bytes: Annotated[int, Field(MAX_WORKSPACE_BYTES, ge=1)]
    """Largest transient copy of an unfolding at a refresh."""
    rule: Annotated[Literal["adamw", "sgd"], Field("adamw")]
    """Inner rule."""


# ---- what follows from the declarations


class Option(NamedTuple):
    """One declared option."""

    kind: Any
    """Its type."""
    limits: Mapping[str, float]
    """Bounds of a number: `ge`, `gt`, `lt`, `le`."""
    default: Any
    meaning: str

    def allows(self, value: Any) -> bool:
        """Say whether a value is one that the declaration admits."""
        return _allows(self.kind, value) and all(_COMPARE[name](value, limit) for name, limit in self.limits.items())

    @property
    def expected(self) -> str:
        """What is admitted, in words."""
        return _words(self.kind, self.limits)


@lru_cache
def options_of(family: type) -> dict[str, Option]:
    """Return the options of a family, in the order of declaration."""
    found = {}
    for name, annotation in get_type_hints(family, include_extras=True).items():
        kind, *fields = get_args(annotation)
        meaning = _meanings().get(f"{family.__name__}.{name}") or _meanings()[name]
        found[name] = Option(kind, _limits(fields), fields[-1].default, meaning)
    return found


def defaults_of(*families: type) -> dict[str, Any]:
    """Return the declared defaults of some families."""
    return {name: option.default for family in families for name, option in options_of(family).items()}


@lru_cache
def _meanings() -> dict[str, str]:
    """Return the docstrings of the declarations, by name and by family and name."""
    found: dict[str, str] = {}
    for family in ast.parse(inspect.getsource(sys.modules[__name__])).body:
        body = family.body if isinstance(family, ast.ClassDef) else []
        for declared, said in zip(body, body[1:], strict=False):
            if isinstance(declared, ast.AnnAssign) and isinstance(said, ast.Expr):
                assert isinstance(family, ast.ClassDef) and isinstance(declared.target, ast.Name)
                meaning = " ".join(ast.literal_eval(said.value).split())
                found.setdefault(declared.target.id, meaning)
                found[f"{family.name}.{declared.target.id}"] = meaning
    return found


_COMPARE = {"ge": operator.ge, "gt": operator.gt, "lt": operator.lt, "le": operator.le}


def _limits(fields: Iterable[FieldInfo]) -> dict[str, float]:
    return {n: getattr(one, n) for field in fields for one in field.metadata for n in _COMPARE if hasattr(one, n)}


def _allows(kind: Any, value: Any) -> bool:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return Option(arguments[0], _limits(arguments[1:]), None, "").allows(value)
    if origin is Literal:
        return any(value == one and isinstance(value, type(one)) for one in arguments)
    if origin in (Union, UnionType):
        return any(_allows(one, value) for one in arguments)
    if origin is tuple:
        fits = isinstance(value, tuple | list) and len(value) == len(arguments)
        return fits and all(_allows(one, each) for one, each in zip(arguments, value, strict=True))
    if kind is float:
        return is_number(value)
    if kind is NoneType:
        return value is None
    return isinstance(value, kind) and (kind is not int or not isinstance(value, bool))


def is_number(value: Any) -> bool:
    """Say whether a value is a finite number; torch's schedulers also drive an lr that is a tensor of one element."""
    torch = sys.modules.get("torch")  # a recipe is judged before it is imported, and holds no tensors
    if torch is not None and isinstance(value, torch.Tensor):
        return bool(value.numel() == 1)
    return isinstance(value, Real) and math.isfinite(value)


def _words(kind: Any, limits: Mapping[str, float]) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _words(arguments[0], _limits(arguments[1:]))
    if origin is Literal or kind is bool:
        return f"one of {', '.join(map(str, arguments or (True, False)))}"
    if origin in (Union, UnionType):
        parts = [_words(one, limits) for one in arguments if one is not NoneType]
        return " or ".join([*(["None"] if NoneType in arguments else []), *parts])
    if origin is tuple:
        return f"two numbers in {_words(arguments[0], {}).removeprefix('a number in ')}"
    if len(limits) == 2:
        (left, low), (right, high) = limits.items()
        return f"a number in {'[' if left == 'ge' else '('}{low}, {high}{']' if right == 'le' else ')'}"
    noun = "a whole number" if kind is int else "a finite number"
    return noun + "".join(f" {'>=' if sign == 'ge' else '>'} {limit}" for sign, limit in limits.items())


# ---- parameter groups

LOW_RANK_KEYS = ("rank", "update_proj_gap", "scale", "proj_type")
"""galore-torch's group keys; a group that has one of them is projected."""

RANK_LR_KEY = "rank_lr_factor"
"""Multiplier of lr that a group has for the live rank of its factors; who makes them grow keeps it true."""

GROUP_KEYS = ("params", "param_names", "name", "low_rank", "split", "stacked", RANK_LR_KEY)
"""What a group may hold besides the options of the optimizer."""

NORM_KEY = "last_grad_norm"
"""What layer-wise clipping writes into the groups, to carry it through a checkpoint."""

SCHEDULER_KEYS = ("initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr")
"""What torch's schedulers write into the groups, which may be given to another optimizer."""

MATRIX_FAMILIES = (GaLoreOptions, LDAdamOptions, GUMOptions)
"""Together they have every option of matrices."""

ALWAYS_GIVEN = ("lr", "betas", "eps", "weight_decay")
"""Options that every optimizer has."""

LOW_RANK_DEFAULTS = {key: value for key, value in defaults_of(*MATRIX_FAMILIES).items() if key not in ALWAYS_GIVEN}
"""What an optimizer does where its preset says nothing. `lazy` is kept as the plain options of `LazyRefresh`."""

TENSOR_DEFAULTS = defaults_of(TensorOptions)
"""The same for optimizers that project tensors; what they share stands in `LOW_RANK_DEFAULTS`, too."""

"""WeLore as a method: `apply`, `remove`.

The default touches no data: one pass over the weights, one threshold on their min-max normalised singular values.
Source: WeLore, arXiv 2407.11239. Differs from the official code: the threshold is found exactly for every model and
budget, biases and dtypes stay, a matrix is never stored larger than it was, and what trains is what is said.
"""

import copy
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.errors import ConfigError
from featherweight.linalg.factors import factorize
from featherweight.linalg.spectrum import Spectra, singular_values
from featherweight.methods.low_rank_model import merge_low_rank, record_in_config
from featherweight.methods.method import Method
from featherweight.methods.options import WeLoreOptions
from featherweight.methods.peft_adapter import require_no_adapter
from featherweight.methods.welore import calibrate
from featherweight.methods.welore.plan import Entry, Plan, find_targets, make_plan, shapes_of
from featherweight.methods.welore.report import plan_report
from featherweight.methods.welore.whiten import (
    Moments,
    Root,
    refit_left,
    root_of,
    whitened_factors,
    whitened_spectrum,
)
from featherweight.nn.low_rank_linear import LowRankLinear, PivotedLinear, dense_copy, matrix_of
from featherweight.nn.module_tree import replace_module
from featherweight.ownership import Part, refuse_owned
from featherweight.report import Report

# A plain attribute, so that a deep copy of a model knows what was trainable.
_ATTRIBUTE = "_featherweight_welore"


class WeLore(WeLoreOptions, Method):
    """Options of WeLore; ``fw.apply(model, fw.WeLore(rank_reduction=0.5))`` cuts a model in place.

    Example:
        >>> import featherweight as fw
        >>> from featherweight.models import load_model
        >>> model = load_model("tiny")
        >>> report = fw.apply(model, fw.WeLore(rank_reduction=0.5))
        >>> round(fw.methods.welore.rank_reduction(report), 3)
        0.5
    """

    def apply(self, model: nn.Module, calibration: Any = None) -> Report:
        """Cut a model in place; see `fw.apply`.

        Args:
            model: on one device; matrices are worked on one after the other.
            calibration: batches of token ids for `whitened` and `refit`: an iterable of tensors (B, L), or of mappings
                with `input_ids` and possibly `attention_mask`.
        Raises:
            ConfigError: if nothing can be cut, the budget cannot be reached, calibration data are missing, or the model
                has an adapter.
            NumericsError: if a weight is NaN or infinite.
        """
        require_no_adapter(model, "WeLore")
        if any(parameter.is_meta for parameter in model.parameters()):
            raise ConfigError(
                "WeLore: model has parameters on device=meta, without numbers; expected a loaded model. Load it, or "
                "give its folder to fw compress, which reads it block by block."
            )
        targets, skipped = find_targets(model, self)
        for name, linear in targets.items():
            refuse_owned(Part.FORWARD, linear, "WeLore", name=name)
        changes_training = self.train in ("lrc", "nlrc")
        trainable = {name: one.requires_grad for name, one in model.named_parameters()} if changes_training else {}
        if self.method == "plain":
            spectra: Spectra = {name: singular_values(matrix_of(one), name) for name, one in targets.items()}
            plan = self._plan(model, targets, spectra, skipped)
            _cut_plain(model, targets, plan)
        else:
            plan = self._cut_calibrated(model, targets, skipped, calibration)
        record_in_config(model)
        setattr(model, _ATTRIBUTE, trainable)
        set_trainable(model, plan, self.train, self.train_norms)
        return plan_report(plan, f"WeLore ({self.method})", sum(p.numel() for p in model.parameters()))

    def remove(self, model: nn.Module) -> None:
        """Merge the factors back into ordinary layers and make trainable what was; see `fw.remove`.

        Without `train`, nothing was frozen, and what was frozen since then stays so. The matrices keep their reduced
        rank: what was cut off is gone.
        """
        merge_low_rank(model)
        trainable = vars(model).get(_ATTRIBUTE, {})
        for name, parameter in model.named_parameters():
            if name in trainable and parameter.is_floating_point():
                parameter.requires_grad_(trainable[name])
        vars(model).pop(_ATTRIBUTE, None)

    def _plan(self, model: nn.Module, targets: dict[str, nn.Linear], spectra: Spectra, skipped: dict[str, str]) -> Plan:
        parameters = {id(parameter): parameter for parameter in model.parameters()}.values()
        return make_plan(
            shapes_of(targets),
            spectra,
            self,
            skipped=skipped,
            total_numel=sum(p.numel() for p in parameters),
            total_bytes=sum(p.numel() * p.element_size() for p in parameters),
        )

    def _cut_calibrated(
        self, model: nn.Module, targets: dict[str, nn.Linear], skipped: dict[str, str], calibration: Any
    ) -> Plan:
        if calibration is None:
            raise ConfigError(
                f"WeLore: method={self.method} needs data and calibration=None; expected batches of token ids. Give "
                "calibration= to fw.apply, --calibration to fw compress, or choose method='plain'."
            )
        blocks = calibrate.find_blocks(model, targets)
        with calibrate.in_eval_mode(model):
            begin = calibrate.start(model, blocks, calibration)
            _check_tokens(begin.tokens, targets)
            spectra: dict[str, Tensor] = {}
            stream = begin.copy()
            for index, block in enumerate(blocks.modules):
                roots = block_roots(block, index, stream, blocks, targets, centre=self.method == "whitened")
                for name, (_, root) in roots.items():
                    matrix = matrix_of(targets[name])
                    spectra[name] = (
                        singular_values(matrix, name) if root is None else whitened_spectrum(_wide(matrix), root)
                    )
            plan = self._plan(model, targets, {name: spectra[name] for name in targets}, skipped)
            dense, compressed = begin.copy(), begin.copy()
            for index, block in enumerate(blocks.modules):
                entries = [plan.entries[name] for name in blocks.targets[index]]
                original = copy.deepcopy(block) if self.method == "refit" else block
                before = dense.copy()
                roots = block_roots(block, index, dense, blocks, targets, centre=self.method == "whitened")
                _cut_block(model, targets, entries, roots, keep_factors=self.method == "refit")
                if self.method == "refit":
                    _refit_block(model, entries, (original, block), index, (before, compressed), blocks, targets)
                    compressed.hidden = calibrate.run_block(block, index, compressed)
        return plan


def set_trainable(model: nn.Module, plan: Plan, train: str | None, train_norms: bool) -> None:
    """Freeze everything but what `train` names.

    Args:
        model: after its matrices were exchanged.
        plan: says which modules are LRCs.
        train: "lrc", "nlrc", or None and "all", which change nothing.
        train_norms: whether norms train along.
    """
    if train in (None, "all"):
        return
    chosen = {
        id(parameter)
        for name, entry in plan.entries.items()
        if entry.is_lrc == (train == "lrc")
        for parameter in model.get_submodule(name).parameters()
    }
    if train_norms:
        norms = (module for module in model.modules() if "norm" in type(module).__name__.lower())
        chosen |= {id(parameter) for module in norms for parameter in module.parameters(recurse=False)}
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(id(parameter) in chosen)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        warnings.warn(f"WeLore: train={train} leaves nothing to train. Raise rank_reduction.", stacklevel=3)


def build_layer(linear: nn.Module, left_MR: Tensor, right_RN: Tensor, storage: str) -> nn.Module:
    """Return the layer that stores two factors in the chosen way."""
    if storage == "factored":
        return LowRankLinear.from_factors(linear, left_MR, right_RN)
    if storage == "pivoted":
        return PivotedLinear.from_factors(linear, left_MR, right_RN)
    return dense_copy(linear, left_MR @ right_RN)


def _cut_plain(model: nn.Module, targets: dict[str, nn.Linear], plan: Plan) -> None:
    with torch.no_grad():
        for name, entry in plan.entries.items():
            if entry.is_cut:
                factors = factorize(_wide(matrix_of(targets[name])), entry.rank)
                replace_module(model, name, build_layer(targets.pop(name), *factors, entry.storage))


def block_roots(
    block: nn.Module,
    index: int,
    stream: calibrate.Stream,
    blocks: calibrate.Blocks,
    targets: dict[str, nn.Linear],
    *,
    centre: bool,
) -> dict[str, tuple[Moments, Root | None]]:
    """Return moments and root by layer (no root where there are too few tokens), and move the stream on.

    Args:
        block: one of `blocks`.
        index: its place.
        stream: what it reads; afterwards what the next one reads.
        blocks: of the model.
        targets: layers by name.
        centre: take the moments of layers with a bias about their mean.
    """
    names = calibrate.inner_names(blocks.names[index], blocks.targets[index])
    moments = calibrate.moments_of(block, index, stream, names)
    made: dict[tuple[int, bool], Root | None] = {}
    roots = {}
    for name in names.values():
        one = moments.get(name) or Moments.zeros(matrix_of(targets[name]).shape[1])
        is_centred = centre and targets[name].bias is not None
        key = (id(one), is_centred)
        if key not in made:
            second = one.centred() if is_centred else one.second_NN
            made[key] = root_of(second, one.tokens) if 4 * one.tokens >= len(second) else None
        roots[name] = (one, made[key])
    return roots


@torch.no_grad()
def _cut_block(
    model: nn.Module,
    targets: dict[str, nn.Linear],
    entries: Iterable[Entry],
    roots: dict[str, tuple[Moments, Root | None]],
    *,
    keep_factors: bool,
) -> None:
    for entry in entries:
        if not entry.is_cut:
            continue
        linear, (moments, root) = targets[entry.name], roots[entry.name]
        matrix = _wide(matrix_of(linear))
        factors = factorize(matrix, entry.rank) if root is None else whitened_factors(matrix, root, entry.rank)
        layer = build_layer(linear, *factors, "factored" if keep_factors else entry.storage)
        if linear.bias is not None and not keep_factors and root is not None:
            # The mean of what is lost goes into the bias; what is left is about the mean, as the root was.
            lost_M = (matrix.double() - (factors[0] @ factors[1]).double()) @ (moments.first_N / moments.tokens)
            holder = layer.U if isinstance(layer, LowRankLinear) else layer
            shifted = (linear.bias.double() + lost_M).to(linear.bias.dtype)
            holder.bias = nn.Parameter(shifted, requires_grad=linear.bias.requires_grad)
        replace_module(model, entry.name, layer)


@torch.no_grad()
def _refit_block(
    model: nn.Module,
    entries: list[Entry],
    pair: tuple[nn.Module, nn.Module],
    index: int,
    streams: tuple[calibrate.Stream, calibrate.Stream],
    blocks: calibrate.Blocks,
    targets: dict[str, nn.Linear],
) -> None:
    """Fit the left factors of a block to the outputs of the dense one, on inputs that the compressed layers give."""
    names = calibrate.inner_names(blocks.names[index], [entry.name for entry in entries if entry.is_cut])
    sums: dict[str, tuple[Tensor, Tensor]] = {}
    for number in range(len(streams[0].hidden)):
        exact: dict[str, Tensor] = {}
        parts = [calibrate.Stream([s.hidden[number]], [s.arguments[number]], [s.masks[number]]) for s in streams]
        calibrate.run_block(pair[0], index, parts[0], names, lambda name, x, _, into=exact: into.update({name: x}))  # type: ignore[misc]

        def add(name: str, x_TN: Tensor, _: int, exact: dict[str, Tensor] = exact) -> None:
            given_TN = x_TN.double()
            # Half of the dense inputs: a fit to the compressed ones alone chases their noise.
            wished_TN = (exact[name].double() + given_TN) / 2
            cross, second = wished_TN.mT @ given_TN, given_TN.mT @ given_TN
            old = sums.get(name)
            sums[name] = (cross, second) if old is None else (old[0] + cross, old[1] + second)

        calibrate.run_block(pair[1], index, parts[1], names, add)
    for entry in entries:
        if entry.name not in sums:
            continue
        layer = model.get_submodule(entry.name)
        assert isinstance(layer, LowRankLinear)
        right_RN = _wide(layer.V.weight.detach())
        left_MR = refit_left(_wide(matrix_of(targets[entry.name])), right_RN, *sums[entry.name])
        replace_module(model, entry.name, build_layer(targets[entry.name], left_MR, right_RN, entry.storage))


def _check_tokens(tokens: int, targets: dict[str, nn.Linear]) -> None:
    widest = max(matrix_of(linear).shape[1] for linear in targets.values())
    if tokens < widest:
        warnings.warn(
            f"WeLore: calibration has {tokens} tokens, fewer than the {widest} inputs of the widest layer; its "
            "second moments are damped, and below a quarter the weights alone decide. Give more text.",
            stacklevel=4,
        )


def _wide(matrix: Tensor) -> Tensor:
    return matrix if matrix.dtype == torch.float64 else matrix.float()

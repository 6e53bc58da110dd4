"""InRank: linear layers that start with a tiny rank and grow it while training needs it, in one run.

Every layer has R components that count and some more, the buffer, that train along. At regular steps the spectrum of
the product of its factors says whether R explains enough of what is there; if not, R rises and the buffer is filled up.
Growth keeps the function: new rows of V are random, new columns of U are zero. When no layer grows any more, the buffer
is cut off and training goes on at fixed ranks.
Shapes: M out_features, N in_features, K live components (R and the buffer), R rank.
Source: InRank, arXiv 2306.11250. Differs from the official code: one run instead of two, any linear layer, optimizer
steps counted instead of forward passes, nothing decided in forward or evaluation, spectra from thin QR decompositions,
moments that follow exactly, memory for live components only, a buffer that begins at zero.
"""

import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from featherweight.errors import CheckpointError, ConfigError
from featherweight.linalg.factors import factorize
from featherweight.linalg.random import keyed_generator
from featherweight.linalg.spectrum import explained_rank, variance_ratios
from featherweight.methods.inrank.distribution import ranks_of_first_process
from featherweight.methods.inrank.growth import grow, refactor
from featherweight.methods.inrank.rates import divide_groups, follow_ranks
from featherweight.methods.inrank.report import growth_report
from featherweight.methods.inrank.spectrum import layer_spectrum
from featherweight.methods.inrank.state import ATTRIBUTE, GrowthState, growing_layer, growth_state
from featherweight.methods.low_rank_model import low_rank_modules, merge_low_rank, record_in_config
from featherweight.methods.method import Method
from featherweight.methods.options import InRankOptions
from featherweight.methods.peft_adapter import require_no_adapter
from featherweight.nn.low_rank_linear import LowRankLinear, is_linear, matrix_of
from featherweight.nn.module_tree import replace_module, shared_parameters
from featherweight.ownership import Part, refuse_owned
from featherweight.report import Report
from featherweight.selection import select_modules
from featherweight.unwrap import unwrap_model, unwrap_optimizer

logger = logging.getLogger(__name__)

STORED_VALUES = 20
"""Singular values of a layer that the history keeps at a check."""


class InRank(InRankOptions, Method):
    """Options of InRank; ``fw.apply(model, fw.InRank())`` before the optimizer is built.

    Example:
        >>> import featherweight as fw
        >>> from featherweight.models import load_model
        >>> model = load_model("tiny")
        >>> report = fw.apply(model, fw.InRank(buffer=16))
        >>> model.model.layers[0].mlp.up_proj.rank
        18
    """

    def apply(self, model: nn.Module, calibration: Any = None) -> Report:
        """Exchange the selected layers for growing ones, in place; see `fw.apply`.

        Args:
            model: with fresh weights; a model on the meta device is counted, not initialised.
            calibration: not used.
        Raises:
            ConfigError: if no layer can be exchanged, or the model has an adapter.
        """
        require_no_adapter(model, "InRank")
        if present := low_rank_modules(model):
            raise ConfigError(
                f"InRank: module='{next(iter(present))}' is of low rank already; expected a model of ordinary layers. "
                "Call fw.merge_low_rank first."
            )
        state = GrowthState({}, {})
        shared = shared_parameters(model)
        selected = select_modules(model, self.target_modules, self.exclude_modules)
        linears = {name: module for name, module in selected.items() if is_linear(module)}
        for name, linear in linears.items():
            refuse_owned(Part.FORWARD, linear, "InRank", name=name)
        places = {name: place for place, name in enumerate(linears)}
        for name, module in selected.items():
            if (reason := self._obstacle(module, shared)) is not None:
                state.dense[name] = reason
                continue
            live = self._live(self.init_rank, self.limit(*matrix_of(module).shape))
            # Seeded by the place among linear layers, so that a layer that stays dense moves no other one's draw.
            layer = self._start(module, live, places[name])
            replace_module(model, name, layer)
            state.ranks[name] = min(self.init_rank, live)
            if self.growth == "change" and not self.keep_w0:  # beside W0 the factors begin at zero
                state.start[name] = (layer.U.weight.detach().clone(), layer.V.weight.detach().clone())
        if not state.ranks:
            reasons = "; ".join(f"{name} {reason}" for name, reason in list(state.dense.items())[:3])
            raise ConfigError(
                f"InRank: target_modules={self.target_modules!r} selects no layer that can grow ({reasons}); expected "
                f"plain, trained linear layers with room above init_rank={self.init_rank}. Lower init_rank, select "
                "other layers, or load the model without quantisation."
            )
        setattr(model, ATTRIBUTE, state)
        record_in_config(model)
        return self.report(model)

    def remove(self, model: nn.Module) -> None:
        """Merge the factors into plain layers; see `fw.remove`. The function stays the same.

        What is frozen stays frozen: a merged layer trains if its factors did, and nothing else is touched.

        Raises:
            ConfigError: if there is an activation between the factors.
        """
        merge_low_rank(model)
        vars(model).pop(ATTRIBUTE, None)

    def after_step(self, model: nn.Module, optimizer: Optimizer, step: int) -> None:
        """Check the spectra if it is time, grow, and end the growth if nothing grows any more.

        Args:
            model: that was given to `apply`, wrapped for data parallelism or not.
            optimizer: holds the factors; changed where they grow. Gradients are dropped there.
            step: optimizer steps that are done, this one included.
        Raises:
            NumericsError: if a factor is NaN or infinite; names the layer.
            ConfigError: if the optimizer does not hold the factors, is layer-wise, or the factors are sharded.
        """
        model = unwrap_model(model)
        state = growth_state(model)
        if state.is_frozen:
            return
        optimizer = unwrap_optimizer(optimizer)
        if step > self.warmup and (step - self.warmup) % self.every == 0:
            grew = self._check(model, state, optimizer, step)
            state.quiet_checks = 0 if grew else state.quiet_checks + 1
        is_quiet = self.patience is not None and state.quiet_checks >= self.patience
        if is_quiet or (self.freeze_step is not None and step >= self.freeze_step):
            self.freeze(model, optimizer)
        if self.lr_factor == "rank":
            follow_ranks(model, optimizer)

    def param_groups(
        self, model: nn.Module, lr: float, groups: list[dict[str, Any]] | None = None
    ) -> list[dict[str, Any]]:
        """Return groups in which the factors of each layer run at `lr_factor` times their rate.

        `after_step` keeps these rates true. Where a scheduler of torch runs beside it, call
        `featherweight.training.follow_groups` after it; recipes and `MethodCallback` do.

        Args:
            model: that was given to `apply`.
            lr: base rate of the optimizer.
            groups: groups of named parameters to divide; None takes all that trains as one group.
        Example:
            >>> model = nn.Sequential(nn.Linear(64, 64))
            >>> method = InRank(buffer=6)
            >>> report = method.apply(model)
            >>> optimizer = torch.optim.AdamW(method.param_groups(model, lr=1e-3), lr=1e-3)
            >>> [(group["param_names"], group["lr"]) for group in optimizer.param_groups]
            [(['0.U.bias'], 0.001), (['0.V.weight', '0.U.weight'], 0.0026666666666666666)]
        """
        groups = super().param_groups(model, lr, groups)
        fixed = None if self.lr_factor == "rank" else self.lr_factor
        return groups if fixed == 1.0 else divide_groups(unwrap_model(model), lr, groups, fixed)

    @torch.no_grad()
    def freeze(self, model: nn.Module, optimizer: Optimizer | None = None) -> None:
        """End the growth now: balance the factors and cut the buffer off, if the options say so.

        Args:
            model: that was given to `apply`.
            optimizer: its moments follow exactly; None if there is none.
        """
        model = unwrap_model(model)
        state = growth_state(model)
        state.is_frozen = True
        state.start.clear()
        if self.activation is not None:
            return
        for name in state.ranks:
            layer = growing_layer(model, name)
            kept = state.ranks[name] if self.drop_buffer else layer.rank
            refactor(layer, kept, None if optimizer is None else unwrap_optimizer(optimizer))
        record_in_config(model)

    def state_dict(self, model: nn.Module) -> dict[str, Any]:
        """Return ranks, phase and history, for a checkpoint."""
        state = growth_state(unwrap_model(model))
        return {
            "ranks": dict(state.ranks),
            "is_frozen": state.is_frozen,
            "quiet_checks": state.quiet_checks,
            "measures_change": bool(state.start),
            "history": [dict(entry) for entry in state.history],
        }

    def load_state_dict(self, model: nn.Module, state: Mapping[str, Any]) -> None:
        """Take over ranks, phase and history; the factors take their shapes when the weights are loaded.

        Raises:
            CheckpointError: if the layers have other names.
        """
        present = growth_state(unwrap_model(model))
        if present.ranks.keys() != state["ranks"].keys():
            ours, theirs = sorted(present.ranks), sorted(state["ranks"])
            raise CheckpointError(
                f"InRank: layers={theirs} of the checkpoint are not those of this model; expected {ours}. Apply "
                "InRank with the options of the run that wrote it."
            )
        present.ranks.update(state["ranks"])
        present.is_frozen, present.quiet_checks = bool(state["is_frozen"]), int(state["quiet_checks"])
        present.history = [dict(entry) for entry in state["history"]]
        if not state.get("measures_change", False):
            present.start.clear()  # a run from before there was one goes on as it began
        record_in_config(unwrap_model(model))

    def report(self, model: nn.Module) -> Report:
        """Return ranks, sizes and the course of the growth, with pictures."""
        model = unwrap_model(model)
        state = growth_state(model)
        layers = {name: growing_layer(model, name) for name in state.ranks}
        return growth_report(model, layers, state, self.buffer)

    def limit(self, rows: int, columns: int) -> int:
        """Return the largest number of live components of a layer."""
        most = self.max_rank or max(0, math.floor(rows * columns / (rows + columns)) - 1)
        return min(most, rows, columns)

    def _live(self, rank: int, limit: int) -> int:
        multiple = self.rank_multiple
        return min(limit, math.ceil((rank + self.buffer) / multiple) * multiple)

    def _obstacle(self, module: nn.Module, shared: set[int]) -> str | None:
        """Say why a selected module stays dense, or return None."""
        if not is_linear(module):
            return f"stays dense: {type(module).__name__} is no plain linear layer"
        if id(module.weight) in shared:
            return "stays dense: its weight is shared with another module"
        weight: Tensor = module.weight  # type: ignore[assignment]
        if not weight.requires_grad:
            return "stays dense: its weight is frozen"
        limit = self.limit(*matrix_of(module).shape)
        return (
            f"stays dense: two factors of more than rank {limit} would be larger" if limit <= self.init_rank else None
        )

    def _start(self, linear: nn.Module, live: int, index: int) -> LowRankLinear:
        matrix_MN = matrix_of(linear)
        wide_MN = matrix_MN if matrix_MN.dtype == torch.float64 else matrix_MN.float()
        if wide_MN.is_meta:
            left, right = wide_MN.new_empty(wide_MN.shape[0], live), wide_MN.new_empty(live, wide_MN.shape[1])
        else:
            left, right = self._factors(wide_MN, live, keyed_generator(self.seed, index))
            if self.buffer_init == "zero":
                left[:, self.init_rank :] = 0
        layer = LowRankLinear.from_factors(linear, left, right, activation=self.activation)
        if self.keep_w0:
            layer.base = nn.Parameter(matrix_MN.clone(), requires_grad=False)
        return layer

    def _factors(self, matrix_MN: Tensor, live: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        rows, columns = matrix_MN.shape

        def uniform(shape: tuple[int, int], fan_in: int) -> Tensor:
            drawn = torch.rand(shape, generator=generator, dtype=matrix_MN.dtype) * 2 - 1
            return (drawn * fan_in**-0.5).to(matrix_MN.device)

        if self.keep_w0:
            return matrix_MN.new_zeros(rows, live), uniform((live, columns), columns)
        if self.activation is not None:
            # CoLA: the product has the variance (in + out)^-1/2 of its reference initialisation.
            scale = live**-0.25 * (rows + columns) ** -0.25
            shapes = ((rows, live), (live, columns))
            pair = [torch.randn(shape, generator=generator, dtype=matrix_MN.dtype) * scale for shape in shapes]
            return pair[0].to(matrix_MN.device), pair[1].to(matrix_MN.device)
        if self.init == "spectral":
            left, right = factorize(matrix_MN, live)
            # The energy of what is left out goes into what stays, so that outputs keep their variance.
            root = (matrix_MN.norm() / (left.square().sum(0).square().sum().sqrt()).clamp_min(1e-30)).sqrt()
            return left * root, right * root
        left = uniform((rows, live), max(1, min(rows, columns) // 2))
        if self.init == "orthogonal":
            drawn = torch.randn((columns, live), generator=generator, dtype=matrix_MN.dtype)
            return left, torch.linalg.qr(drawn).Q.mT.to(matrix_MN.device)
        return left, uniform((live, columns), columns)

    @torch.no_grad()
    def _check(self, model: nn.Module, state: GrowthState, optimizer: Optimizer, step: int) -> bool:
        """Measure all layers, grow those that need it, and tell whether one grew."""
        first = state.start
        spectra = {name: layer_spectrum(growing_layer(model, name), name, first.get(name)) for name in state.ranks}
        wanted = {}
        for name, values in spectra.items():
            layer = growing_layer(model, name)
            need = explained_rank(self._padded(values, layer), self.explained, self.criterion)
            wanted[name] = min(max(need, state.ranks[name]), layer.rank)
        wanted = ranks_of_first_process(wanted, next(model.parameters()).device)
        grew = False
        for index, (name, rank) in enumerate(wanted.items()):
            layer = growing_layer(model, name)
            if rank > state.ranks[name]:
                grew = True
                state.ranks[name] = rank
                live = self._live(rank, self.limit(layer.out_features, layer.in_features))
                if live > layer.rank:
                    grow(layer, live, optimizer, keyed_generator(self.seed, index, step))
            values = spectra[name]
            state.history.append(
                {
                    "step": step,
                    "layer": name,
                    "rank": rank,
                    "live": layer.rank,
                    "explained": self._explained_at(self._padded(values, layer), rank),
                    "values": [float(value) for value in values[:STORED_VALUES]],
                }
            )
        if grew:
            record_in_config(model)
            logger.info("InRank: step %d, mean rank %.1f", step, sum(state.ranks.values()) / len(state.ranks))
        return grew

    def _padded(self, values: Tensor, layer: LowRankLinear) -> Tensor:
        """Add the zeros of the whole matrix, which the variance form counts."""
        if self.criterion == "energy":
            return values
        return torch.cat([values, values.new_zeros(min(layer.out_features, layer.in_features) - len(values))])

    def _explained_at(self, values: Tensor, rank: int) -> float:
        if self.criterion == "variance":
            return float(variance_ratios(values)[rank - 1])
        squares = values.double().square()
        total = float(squares.sum())
        return float(squares[:rank].sum()) / total if total else 1.0

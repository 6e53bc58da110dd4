"""What InRank reports: ranks and sizes by layer, the cost against dense layers, ranks over time, spectra."""

from collections import defaultdict
from collections.abc import Mapping

from torch import nn

from featherweight.methods.inrank.state import GrowthState
from featherweight.methods.welore.report import split_name
from featherweight.nn.low_rank_linear import LowRankLinear
from featherweight.report import Report

ADAM_BYTES = 8
"""Two float32 moments of a parameter."""


def growth_report(model: nn.Module, layers: Mapping[str, LowRankLinear], state: GrowthState, buffer: int) -> Report:
    """Return the report of a model in growth, or after it.

    Args:
        model: the whole model.
        layers: its growing layers by name.
        state: ranks, phase, history.
        buffer: components that a layer should have beyond its rank.
    """
    report = Report("InRank")
    last_change = _last_changes(state)
    explained = {entry["layer"]: entry["explained"] for entry in state.history}
    rows: list[list[object]] = []
    factored = dense = 0
    for name, layer in layers.items():
        sides = layer.out_features + layer.in_features
        now, before = layer.rank * sides, layer.out_features * layer.in_features
        factored, dense = factored + now, dense + before
        rows.append(
            [
                *(name, layer.out_features, layer.in_features, state.ranks[name], layer.rank),
                *(explained.get(name), now, before, last_change.get(name)),
            ]
        )
    # A frozen base is read forward and backward, but has no gradient of its own: 4 instead of 6 FLOPs.
    numel = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    held = sum(layer.base.numel() for layer in layers.values() if layer.base is not None)
    full = numel - held - factored + dense
    report.add_facts(
        {
            "phase": "ranks are fixed" if state.is_frozen else "ranks may grow",
            "parameters": numel,
            "parameters if dense": full,
            "times smaller": full / numel,
            "Adam moments (bytes)": ADAM_BYTES * trained,
            "FLOPs per token and step in these layers": 6 * factored + 4 * held,
            "FLOPs if dense": 6 * dense,
            "smallest possible share of FLOPs of all layers": _ceiling(model, layers, factored, dense),
            "buffer": buffer,
        },
        title="Totals",
    )
    columns = ["layer", "rows", "columns", "rank", "live", "explained", "parameters", "if dense", "last grown (step)"]
    report.add_table("Layers", columns, rows)
    if state.dense:
        report.add_table("Left dense", ["layer", "why"], list(state.dense.items()))
    _add_pictures(report, layers, state)
    return report


def _ceiling(model: nn.Module, layers: Mapping[str, LowRankLinear], factored: int, dense: int) -> float:
    """Return the FLOPs of all matrices now over those if dense; embeddings are looked up and do not count."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    inside = {id(parameter) for layer in layers.values() for parameter in layer.parameters()}
    others = (p for p in model.parameters() if p.ndim == 2 and id(p) not in embeddings | inside)
    rest = sum(parameter.numel() for parameter in others)
    return (rest + factored) / (rest + dense) if rest + dense else 1.0


def _last_changes(state: GrowthState) -> dict[str, int]:
    """Return the step at which each layer grew last."""
    last: dict[str, int] = {}
    before: dict[str, int] = {}
    for entry in state.history:
        name = entry["layer"]
        if entry["rank"] != before.get(name):
            last[name] = entry["step"]
        before[name] = entry["rank"]
    return last


def _add_pictures(report: Report, layers: Mapping[str, LowRankLinear], state: GrowthState) -> None:
    if not state.history:
        return
    over_time: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for entry in state.history:
        over_time[split_name(entry["layer"])[1]][entry["step"]].append(entry["rank"])
    curves = {
        kind: (list(by_step), [sum(ranks) / len(ranks) for ranks in by_step.values()])
        for kind, by_step in over_time.items()
    }
    report.add_curves("Rank over time", "optimizer steps", "rank, mean over layers of a kind", curves)
    by_kind: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for name in layers:
        layer, kind = split_name(name)
        by_kind[kind].append((layer, state.ranks[name]))
    ranks = {kind: tuple(zip(*sorted(points), strict=True)) for kind, points in by_kind.items()}
    report.add_curves("Rank by layer", "layer", "rank", ranks)  # type: ignore[arg-type]
    newest = {entry["layer"]: entry["values"] for entry in state.history}
    spectra = {}
    for kind in by_kind:
        members = [name for name in layers if split_name(name)[1] == kind]
        values = newest[members[len(members) // 2]]
        if values and values[0] > 0:
            spectra[kind] = (list(range(1, len(values) + 1)), [value / values[0] for value in values])
    if spectra:
        label = "singular value / largest"
        report.add_curves("Spectrum of the middle layer at the last check", "position", label, spectra)

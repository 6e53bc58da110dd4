"""What an optimizer says of itself: how parameters are treated, what that takes, what computed the last step."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from featherweight.optim.step.layout import Layout, State
from featherweight.optim.step.matrix_layout import MatrixLayout
from featherweight.optim.step.plan import named_parameters
from featherweight.optim.step.tensor_layout import TensorLayout
from featherweight.report import Report


def summary_of(optimizer: Any) -> Report:
    """Return how the parameters of a `LowRankOptimizer` are treated; see its `report`."""
    kinds: dict[str, list[int]] = defaultdict(lambda: [0] * 6)
    gaps: list[int] = []
    for group, parameter, _ in named_parameters(optimizer.param_groups):
        layout, state = optimizer.step_of(parameter).layout, optimizer.state.get(parameter, {})
        refreshes = int(state["refresh_count"].sum()) if "refresh_count" in state else 0
        if "refresh_gap" in state:
            gaps += state["refresh_gap"].clamp_min(group["update_proj_gap"]).reshape(-1).tolist()
        row = (1, parameter.numel(), layout.moment_bytes(), layout.basis_bytes(), layout.nbytes(), refreshes)
        kinds[layout.kind] = [a + b for a, b in zip(kinds[layout.kind], row, strict=True)]
    report = Report(type(optimizer).__name__)
    columns = ["kind", "tensors", "parameters", "moments (bytes)", "basis (bytes)", "state (bytes)", "refreshes"]
    report.add_table("Parameters by kind", columns, [[kind, *row] for kind, row in sorted(kinds.items())])
    report.add_facts({"state (bytes)": optimizer.state_bytes(), "skipped tensor steps": optimizer.skipped_steps})
    ran = Counter(step.ran for step in map(optimizer.step_of, optimizer.layouts) if step.ran)
    if ran:
        report.add_table("Inner updates of the last step", ["computed by", "tensors"], sorted(map(list, ran.items())))
    if optimizer.layerwise is not None and (rows := optimizer.layerwise.core_rows()):
        columns = ["parameter", "gradient", "FLOPs of the core / gradient", "core (bytes)", "gradient (bytes)"]
        report.add_table("Core gradients", columns, rows)
    _add_tensor_table(report, optimizer.layouts, optimizer.state)
    _add_places(report, optimizer.layouts.values())
    if gaps:
        report.add_facts({"longest gap (steps)": max(gaps), "mean gap (steps)": sum(gaps) / len(gaps)})
    return report


def _add_tensor_table(report: Report, layouts: Mapping[Tensor, Layout], states_of: Mapping[Tensor, State]) -> None:
    """Add a table of the projected tensors: ranks, the true share of their entries, bytes, refreshes."""
    rows = []
    for parameter, layout in layouts.items():
        if isinstance(layout, TensorLayout):
            shape, ranks = (" x ".join(map(str, each)) for each in (layout.plan.shape, layout.plan.ranks))
            state = states_of.get(parameter, {})
            refreshes = int(state["refresh_count"]) if "refresh_count" in state else 0
            ranks = ranks or "at the first gradient"
            rows.append([layout.name, shape, ranks, layout.plan.share, layout.nbytes(), refreshes])
    if rows:
        columns = ["tensor", "shape", "ranks", "entries with moments / all", "state (bytes)", "refreshes"]
        report.add_table("Tensors", columns, rows)


def _add_places(report: Report, layouts: Iterable[Layout]) -> None:
    """Add a table of what of sharded matrices lies where, and why something is whole on every process."""
    found: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for layout in layouts:
        if isinstance(layout, MatrixLayout) and layout.shard is not None:
            found[layout.places].append(layout.name)
    if found:
        columns = ["side", "weight", "moments", "basis", "matrices", "for example"]
        rows = [[*places, len(names), names[0]] for places, names in sorted(found.items())]
        report.add_table("What a process holds of matrices", columns, rows)

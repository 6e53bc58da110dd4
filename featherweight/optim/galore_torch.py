"""Import of optimizer states that galore-torch wrote.

galore-torch keeps its projector as a Python object in the state, so its checkpoints cannot be read with
``torch.load(weights_only=True)`` and resuming from them fails. Here that one class is replaced by a plain record while
reading; no other object is admitted, no code of the file runs, and galore-torch need not be installed.
"""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featherweight.errors import CheckpointError
from featherweight.linalg.subspace import MatrixSubspace
from featherweight.optim.low_rank import LowRankOptimizer
from featherweight.optim.step.layout import parts_of
from featherweight.optim.step.matrix_layout import MatrixLayout


class ProjectorRecord:
    """Stands for `galore_torch.galore_projector.GaLoreProjector`: its attributes, no behaviour."""

    ortho_matrix: Any
    rank: int
    update_proj_gap: int


def load_galore_torch(optimizer: LowRankOptimizer, path: str | os.PathLike[str]) -> None:
    """Continue a run of galore-torch: read its optimizer state into `optimizer`.

    Bases, moments and step counts are taken over; from there on the options of `optimizer` hold. With `state_bits` or
    `basis_bits` below those of the file the values are rounded once.

    Args:
        optimizer: built with the same parameter groups, in the same order, as the optimizer that wrote the state.
        path: file of ``torch.save(galore_optimizer.state_dict(), path)``, or of a dict that holds it under "optimizer".
    Raises:
        CheckpointError: if the file cannot be read, or groups, ranks or shapes differ.
    Source: galore-torch 1.0, GaLoreAdamW.
    Example:
        >>> load_galore_torch(optimizer, "optimizer.pt")  # doctest: +SKIP
    """
    saved = _read(Path(path))
    groups = saved["param_groups"]
    ours, theirs = ([len(g["params"]) for g in gs] for gs in (optimizer.param_groups, groups))
    if ours != theirs:
        raise CheckpointError(
            f"load_galore_torch: {path} has groups of {theirs} parameters; expected {ours}. "
            "Build the parameter groups in the order of the run that wrote the file."
        )
    targets = [(group, p) for group in optimizer.param_groups for p in group["params"]]
    ids = [index for group in groups for index in group["params"]]
    for saved_id, (group, parameter) in zip(ids, targets, strict=True):
        if saved_id in saved["state"]:
            _import_parameter(optimizer, group, parameter, saved["state"][saved_id])


def _read(path: Path) -> dict[str, Any]:
    names = ("galore_torch.galore_projector.GaLoreProjector",)
    try:
        with torch.serialization.safe_globals([(ProjectorRecord, name) for name in names]):
            saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"load_galore_torch: {path} cannot be read ({type(error).__name__}: {error}); expected a file that "
            "torch.save wrote from the state_dict of galore-torch's GaLoreAdamW. Check the path."
        ) from error
    saved = saved.get("optimizer", saved) if isinstance(saved, dict) else saved
    if not isinstance(saved, dict) or not {"state", "param_groups"} <= saved.keys():
        raise CheckpointError(
            f"load_galore_torch: {path} holds no optimizer state; expected the keys 'state' and 'param_groups'. "
            "Save optimizer.state_dict()."
        )
    return saved


def _import_parameter(
    optimizer: LowRankOptimizer, group: dict[str, Any], parameter: Tensor, saved: dict[str, Any]
) -> None:
    layout = optimizer.layouts[parameter]
    projector = saved.get("projector")
    is_projected = isinstance(layout, MatrixLayout)
    if (projector is not None) != is_projected or layout.stack:
        theirs, ours = ("projected" if low else "full-rank" for low in (projector is not None, is_projected))
        raise CheckpointError(
            f"load_galore_torch: '{layout.name}' is {theirs} in the file and {ours} here; expected the same. "
            "Use the same groups and rank."
        )
    if missing := sorted({"step", *layout.moments} - saved.keys()):
        raise CheckpointError(
            f"load_galore_torch: '{layout.name}' has state={', '.join(sorted(saved))} without {missing[0]}; "
            "expected that of galore-torch's GaLoreAdamW. States of its 8-bit and Adafactor versions cannot be read."
        )
    state = optimizer.state[parameter]
    state.clear()
    optimizer.create_state(parameter)
    step = int(saved["step"])
    state["step"].fill_(step)
    for name, storage in layout.moments.items():
        moment = saved[name]
        if tuple(moment.shape) != layout.moment_shapes[name]:
            raise CheckpointError(
                f"load_galore_torch: '{layout.name}' has {name} of shape {tuple(moment.shape)}; expected "
                f"{layout.moment_shapes[name]}. Use the rank and proj_type of the run that wrote the file."
            )
        storage.write_(parts_of(state, name), moment.to(parameter.device, layout.dtype))
    if projector is None or not isinstance(layout, MatrixLayout):
        return
    subspace = _subspace_of(projector, layout.side)
    for name, basis in (("basis_left", subspace.left), ("basis_right", subspace.right)):
        if basis is not None:
            values = basis.to(parameter.device, layout.dtype).contiguous()
            layout.write_basis_(name, parts_of(state, name), values)
    gap = group["update_proj_gap"]
    state["moment_step"].fill_(step)
    state["refresh_count"].fill_(1 + (step - 1) // gap)
    # galore-torch refreshes before a step whose number, counted from 0, the gap divides.
    state["next_refresh"].fill_(-(-step // gap) * gap)


def _subspace_of(projector: ProjectorRecord, side: str) -> MatrixSubspace:
    """galore-torch stores U (M, R) for the left side, V^T (R, N) for the right, and both in a list."""
    matrix = projector.ortho_matrix
    if side == "both":
        return MatrixSubspace(left=matrix[0], right=matrix[1].mT)
    return MatrixSubspace(left=matrix, right=None) if side == "left" else MatrixSubspace(left=None, right=matrix.mT)

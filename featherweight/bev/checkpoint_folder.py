"""Where a trained network lies; told without torch."""

import json
from pathlib import Path

from featherweight.errors import CheckpointError


def network_folder(checkpoint: str | Path) -> Path:
    """Return the folder that holds a trained network: the one given, or its `model`.

    Raises:
        CheckpointError: if there is none, or one of another kind.
    """
    folder = Path(checkpoint)
    if (folder / "model" / "config.json").is_file():
        folder = folder / "model"
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"bev: checkpoint='{checkpoint}' holds no trained network (config.json); expected the folder of a run of "
            "`fw bev train`. Train one first."
        )
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"bev: file={folder / 'config.json'} cannot be read ({type(error).__name__}: {error}); expected the "
            "options of a network. Write the run anew."
        ) from error
    if kind != "focusbev":
        raise CheckpointError(
            f"bev: checkpoint='{checkpoint}' is a '{kind}'; expected a 'focusbev'. Give the folder of a run of "
            "`fw bev train`."
        )
    return folder

"""Whether lm-evaluation-harness is there, asked before torch is imported."""

import importlib.util
from collections.abc import Sequence

from featherweight.errors import MissingExtraError


def require_harness(tasks: Sequence[str]) -> None:
    """Refuse tasks of the harness where it is not installed; asked before torch is imported.

    Raises:
        MissingExtraError: says what goes without it.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise MissingExtraError(
            f"evaluate: tasks={','.join(tasks)} need lm-evaluation-harness, which is not installed; expected it. Run: "
            "pip install 'featherweight[evaluate]'. Without it: --questions FILE and --text FILE measure on local data."
        )

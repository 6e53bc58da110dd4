"""A guard as a folder for transformers' `generate(custom_generate=FOLDER, trust_remote_code=True)`.

The folder holds `custom_generate/generate.py` with the guard inside of it, as text, so it can be moved and shared. It
is code, which transformers runs only with `trust_remote_code=True`; the guard itself stays settings and weights.
"""

import base64
import json
from pathlib import Path

from featherweight.config.files import new_folder
from featherweight.errors import ConfigError
from featherweight.guard.storage import SETTINGS, WEIGHTS, read_guard

PROGRAM = '''"""Guarded generation: model.generate(..., custom_generate=FOLDER, trust_remote_code=True)."""

import base64
import tempfile
from pathlib import Path

FILES = {files}


def generate(model, tokenizer=None, allow_mismatch=False, **options):
    """Generate as the model does, but refuse what the guard flags; `tokenizer` is the model's own."""
    from featherweight.guard.guard import PrefixGuard
    from featherweight.guard.guarded_model import GuardedModel

    if tokenizer is None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(model.name_or_path)
    with tempfile.TemporaryDirectory() as folder:
        for name, content in FILES.items():
            (Path(folder) / name).write_bytes(base64.b64decode(content))
        guard = PrefixGuard.from_pretrained(folder)
    guarded = GuardedModel(model, tokenizer, guard, allow_mismatch=allow_mismatch)
    return guarded.generate(**{{name: value for name, value in options.items() if value is not None}})
'''


def export_guard(guard_folder: Path, out: Path) -> None:
    """Write the folder, which appears complete or not at all.

    Args:
        guard_folder: of a guard.
        out: a new folder.

    Raises:
        CheckpointError: if the guard is damaged.
        ConfigError: if something is there, or it cannot be written.
    """
    found = read_guard(guard_folder)
    if found.classifier is not None or found.options.text_classifier == "custom":
        raise ConfigError(
            f"guard export: guard={guard_folder} has a text classifier of its own, too large for one file of code; "
            "expected bow or a tier of hidden states. Calibrate with --text-classifier bow."
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"guard export: out={out} is not empty; expected a new folder. Choose another name.")
    files = {name: base64.b64encode((guard_folder / name).read_bytes()).decode("ascii") for name in (SETTINGS, WEIGHTS)}
    try:
        with new_folder(out) as temporary:
            (temporary / "custom_generate").mkdir()
            program = PROGRAM.format(files=json.dumps(files, indent=4))
            (temporary / "custom_generate" / "generate.py").write_text(program, encoding="utf-8")
            (temporary / "custom_generate" / "requirements.txt").write_text("featherweight\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"guard export: out={out} cannot be written ({error.strerror}); expected a writable folder. Choose another."
        ) from error

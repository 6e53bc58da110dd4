"""The example recipes: in the wheel beside this package, in a checkout in its folder `examples/recipes`."""

from pathlib import Path

import featherweight
from featherweight.errors import LISTED, ConfigError, did_you_mean


def example_recipes() -> dict[str, Path]:
    """Return the example recipes that were installed, by name."""
    package = Path(featherweight.__file__).parent
    folders = (package / "examples", package.parent / "examples" / "recipes")
    found = next((folder for folder in folders if folder.is_dir()), None)
    return {} if found is None else {file.stem: file for file in sorted(found.glob("*.yaml"))}


def read_example(name: str) -> str:
    """Return the text of an example recipe.

    Raises:
        ConfigError: if there is none of this name.
    """
    known = example_recipes()
    if name not in known:
        raise ConfigError(
            f"fw init: example={name!r} is unknown; expected one of {', '.join(known) or 'none (none are installed)'}. "
            f"{did_you_mean(name, known, otherwise=LISTED)}"
        )
    return known[name].read_text(encoding="utf-8")

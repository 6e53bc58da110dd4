"""What can be said of a compression before torch is imported."""

from pathlib import Path

from featherweight.errors import ConfigError
from featherweight.methods.options import WeLoreOptions
from featherweight.text.corpus import require_corpus


def check_compression(
    source: str,
    out: Path,
    options: WeLoreOptions,
    *,
    calibration: str | None,
    evaluate: str | None,
    searches: bool = False,
) -> None:
    """Refuse a compression whose words do not fit.

    Args:
        source: a model.
        out: the folder to make.
        options: of the cut.
        calibration: corpus to calibrate on.
        evaluate: corpus to measure perplexity on.
        searches: whether the cut is looked for, on `evaluate`.
    Raises:
        ConfigError: if data are missing or not there, the source has no weights, or `out` holds something.
    """
    if searches and evaluate is None:
        raise ConfigError(
            "compress: max_perplexity needs a text to measure on and evaluate=None; expected one. Give --evaluate "
            "english, or a file."
        )
    if options.needs_calibration and calibration is None and not searches:
        raise ConfigError(
            f"compress: method={options.method} needs data and calibration=None; expected a corpus. Give a text file, "
            "or choose method='plain'."
        )
    for corpus in (calibration, evaluate):
        if corpus is not None:
            require_corpus(corpus)
    folder = Path(source).expanduser()
    if folder.suffix == ".json":
        raise ConfigError(
            f"compress: source={source} is a configuration without weights; expected a trained model. Give the folder "
            f"that holds the weights, such as {folder.parent}."
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"compress: out={out} holds files already; expected a new or empty folder. Choose another.")

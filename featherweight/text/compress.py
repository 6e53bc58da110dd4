"""Compression of a causal language model into a folder, with perplexity before and after.

A folder of safetensors is compressed from file to file, whatever its size; every other source, and every way that needs
data, holds the model in memory.
"""

import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors import SafetensorError
from torch import Tensor

from featherweight.config import write_atomically
from featherweight.config.files import new_folder
from featherweight.errors import CheckpointError, ConfigError
from featherweight.methods.method import apply
from featherweight.methods.options import WeLoreOptions
from featherweight.methods.sealed_folder import RECORD
from featherweight.methods.welore import WeLore
from featherweight.methods.welore.stream import Progress, compress_folder
from featherweight.models.export import require_room
from featherweight.models.facts import model_facts
from featherweight.models.load import load_model, load_tokenizer
from featherweight.models.save import write_model_files
from featherweight.models.sources import has_random_weights
from featherweight.models.tokenizer import Tokenizer, encode_documents
from featherweight.report import Facts, Report, Table
from featherweight.text.compress_check import check_compression
from featherweight.text.compress_search import PerplexityLimit, add_search, search_cut
from featherweight.text.corpus import load_documents
from featherweight.text.perplexity import describe_protocol, perplexity

CALIBRATION_ROWS, CALIBRATION_TOKENS = 64, 512
MEMORY_SHARE = 0.4
"""A model is loaded to measure its perplexity if it takes at most this share of the memory that is free."""


def compress(
    source: str,
    out: str | os.PathLike[str],
    options: WeLore | None = None,
    *,
    calibration: str | None = None,
    evaluate: str | None = None,
    evaluate_tokens: int = 4096,
    max_perplexity: str | float | None = None,
    plan_only: bool = False,
    progress: Progress | None = None,
    tell: Callable[[str], None] | None = None,
) -> Report:
    """Compress a causal language model by WeLore and write it as a Hugging Face folder.

    Args:
        source: a model folder, or any other model that recipes know (`smollm2`, a GGUF file, ...).
        out: the folder to make.
        options: budget, rule and storage; None drops half of all ranks.
        calibration: corpus for method=whitened and refit: english, python, or a file, as in recipes; its first 64 rows
            of 512 tokens are read.
        evaluate: corpus to measure perplexity on before and after; None measures none.
        evaluate_tokens: its first so many tokens.
        max_perplexity: find the cut that saves most bytes at this perplexity: "1.1x" that of the model, or a number.
            The next `evaluate_tokens` of `evaluate` choose it, and what follows calibrates where `calibration` is None.
        plan_only: report what would be done and write nothing.
        progress: is told how far the work is, where the model is read from file to file.
        tell: is told in a sentence each what one should know early: the perplexity before, what the cut loses before
            anything is written, and the perplexity after before the result takes its place.
    Returns:
        The report; it also stands in `out` as report.html and report.json.
    Raises:
        ConfigError: if source, out, corpus or options do not fit, or `out` cannot be written.
        CheckpointError: if files of the source are missing or damaged, or the disk is full.
        NumericsError: if a weight is NaN or infinite.
    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = compress("tiny", folder + "/small", WeLore(rank_reduction=0.5))
        >>> report.title
        'WeLore (plain)'
    """
    options = options or WeLore()
    out = Path(out)
    limit = None if max_perplexity is None else PerplexityLimit.parse(max_perplexity)
    check_compression(source, out, options, calibration=calibration, evaluate=evaluate, searches=limit is not None)
    folder = Path(source).expanduser()
    if not plan_only:
        _require_writable(folder, out, None if limit is not None else options)
    shown = _Shown(source, options, None if plan_only else evaluate, evaluate_tokens, tell or _silent)

    def on_plan(report: Report) -> None:
        shown.plan(report)
        _require_room(None if plan_only else out, report)

    if limit is None and not options.needs_calibration and _is_dense_folder(folder):
        report = compress_folder(
            folder,
            out,
            options,
            plan_only=plan_only,
            progress=progress,
            on_plan=on_plan,
            on_complete=shown.result,
        )
    else:
        search = None if limit is None or evaluate is None else _Search(limit, evaluate, evaluate_tokens)
        report = _in_memory(source, out, options, calibration, plan_only, shown, search)
    if has_random_weights(source):
        report.add_facts({"weights": f"random: {source} is a shape, not a trained model"}, title="Source")
    if plan_only:
        return report
    report.sections[1:1] = [Facts("Perplexity", {**shown.facts})] if shown.facts else []
    files = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    report.add_facts({"weights on disk (bytes)": files}, title="Files")
    with _writing(out):
        write_atomically(out / "report.json", report.to_json())
        report.save_html(out / "report.html")
    return report


def _is_dense_folder(folder: Path) -> bool:
    return (folder / "config.json").exists() and not is_low_rank_folder(folder)


def is_low_rank_folder(folder: Path) -> bool:
    """Tell whether a folder holds a model that is of low rank already, which is read in memory."""
    import json

    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"compress: file={folder / 'config.json'} cannot be read ({error}); expected a model folder. "
            "Load or save the model anew."
        ) from error
    return isinstance(settings, dict) and RECORD in settings


def token_stream(corpus: str, tokenizer: Tokenizer, count: int) -> Tensor:
    """Return the first tokens of a corpus, its documents joined by blank lines."""
    stream: list[int] = []
    for token_ids in encode_documents(tokenizer, [f"{document}\n\n" for document in load_documents(corpus)]):
        stream += token_ids
        if len(stream) >= count:
            break
    if len(stream) < 2:
        raise ConfigError(f"compress: corpus={corpus} has {len(stream)} tokens; expected at least 2. Give more text.")
    return torch.tensor(stream[:count])


class _Shown:
    """What a user is told on the way: perplexity before, what the cut loses, perplexity after.

    Args:
        source: of the model.
        options: of the cut.
        corpus: to measure perplexity on; None measures none.
        tokens: its first so many.
        tell: is told each sentence.
    """

    def __init__(
        self, source: str, options: WeLore, corpus: str | None, tokens: int, tell: Callable[[str], None]
    ) -> None:
        self._source, self._options, self.tell = source, options, tell
        self._corpus, self._tokens = corpus, tokens
        self.facts: dict[str, str | float] = {}
        self._before = _perplexity(source, source, corpus, tokens)
        if self._before is not None:
            tell(f"perplexity before: {self._before[0]:.4g} ({self._before[1]})")

    def plan(self, report: Report) -> None:
        """Warn of a cut that takes too much; nothing is written yet."""
        if warning := cut_warning(report, self._options):
            report.add_note(warning, title=CUT)
            self.tell(f"warning: {warning}")

    def result(self, folder: Path) -> None:
        """Measure the complete result, which has not taken its place yet."""
        after = _perplexity(str(folder), self._source, self._corpus, self._tokens)
        if self._before is not None and after is not None:
            before, protocol = self._before
            self.facts = {"perplexity before": before, "perplexity after": after[0], "measured on": protocol}
            self.tell(f"perplexity after: {after[0]:.4g}, before: {before:.4g}")


def _silent(sentence: str) -> None:
    """Tell nobody."""


CUT, CARRIED = "What the cut loses", 0.0001
"""Title of a note, and the share of a matrix's energy that a cut without data may lose before it says so. Measured on
SmolLM2, every matrix cut to the rank that keeps so much of its energy: 99.99 % multiplies the perplexity by 1.2, 99.95
% by 52, 99.5 % by 5,300. Query projections alone lose 2 % without harm: energies cannot tell kinds apart, data can."""


def cut_warning(report: Report, options: WeLore) -> str | None:
    """Return a sentence if ranks go that the spectrum needs, and no data say which directions matter; else None.

    Args:
        report: of the plan.
        options: that made it.
    """
    if options.needs_calibration:
        return None
    table = report.section("Matrices")
    assert isinstance(table, Table)
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    lost = {str(row["module"]): float(row["relative error"]) ** 2 for row in rows}  # type: ignore[arg-type]
    beyond = {name: share for name, share in lost.items() if share > CARRIED}
    if not beyond:
        return None
    worst = max(beyond, key=lambda name: beyond[name])
    return (
        f"{len(beyond)} of {len(rows)} matrices lose more than {CARRIED:.2%} of their energy, '{worst}' "
        f"{beyond[worst]:.2%}: more than their spectra carry without data, and perplexity may rise by orders of "
        "magnitude. Add --method whitened --calibration english (or a text of yours), or cut less."
    )


def _in_memory(
    source: str,
    out: Path,
    options: WeLore,
    calibration: str | None,
    plan_only: bool,
    shown: "_Shown",
    search: "_Search | None",
) -> Report:
    tokenizer = load_tokenizer(source)
    model = load_model(source, tokenizer=tokenizer).eval()
    longest = model_facts(source).max_position_embeddings or math.inf
    batches: list[Tensor] | None = None
    if options.needs_calibration:
        corpus = calibration if calibration is not None or search is None else search.corpus
        skipped = 0 if calibration is not None or search is None else 2 * search.tokens
        assert corpus is not None
        stream = token_stream(corpus, tokenizer, skipped + CALIBRATION_ROWS * CALIBRATION_TOKENS)[skipped:]
        batches = _calibration_rows(stream, corpus, int(min(CALIBRATION_TOKENS, longest)))
    found = None
    if search is not None:
        chooses = token_stream(search.corpus, tokenizer, 2 * search.tokens)[search.tokens :]
        window = int(min(1024, longest))
        found = search_cut(
            model, options, search.limit, chooses, window_tokens=window, batches=batches, tell=shown.tell
        )
        options = found.options
    report = apply(model, options, batches)
    if found is not None:
        add_search(report, found)
    else:
        shown.plan(report)
    _require_room(None if plan_only else out, report)
    if not plan_only:
        with _writing(out), new_folder(out) as temporary:
            write_model_files(model, tokenizer, temporary)
            del model
            shown.result(temporary)
    return report


@dataclass(frozen=True)
class _Search:
    """What a cut is looked for with."""

    limit: PerplexityLimit
    corpus: str
    tokens: int
    """The first so many judge, the next so many choose."""


def _calibration_rows(stream: Tensor, corpus: str, longest: int) -> list[Tensor]:
    """Return batches of rows of equal length."""
    length = min(longest, len(stream))
    if length < 2:
        raise ConfigError(
            f"compress: corpus={corpus} leaves {len(stream)} tokens to calibrate on; expected at least 2. Give "
            "--calibration another text."
        )
    return list(stream[: len(stream) // length * length].view(-1, length).split(8))


def _require_least_room(folder: Path, out: Path, options: WeLoreOptions) -> None:
    """Refuse a disk without room for the least that can come out, before hours of reading spectra.

    A matrix of which a share of the ranks stays takes that share of its bytes or more; ranks may go where they are
    cheap, so half of it is asked for.
    """
    before = sum(file.stat().st_size for file in folder.glob("*.safetensors")) if folder.is_dir() else 0
    least = min(before, options.max_bytes or 0) / 2
    if options.param_ratio is not None:
        least = before * options.param_ratio / 2
    elif options.max_bytes is None and options.threshold is None and options.rank_pattern is None:
        least = before * (1 - (0.5 if options.rank_reduction is None else options.rank_reduction)) / 2
    require_room(out, least, where="compress")


def _require_room(out: Path | None, report: Report) -> None:
    """Refuse a disk without room for what a plan leaves, before anything of it is written; None: nothing will be.

    What an interrupted run has written counts as written.
    """
    if out is None:
        return
    totals = report.section("Totals")
    assert isinstance(totals, Facts)
    written = sum(file.stat().st_size for file in out.with_name(f".{out.name}.partial").glob("model-*.safetensors"))
    require_room(out, float(totals.facts["bytes after"]) - written, where="compress")  # type: ignore[arg-type]


def _require_writable(folder: Path, out: Path, options: WeLoreOptions | None) -> None:
    """Refuse a place that cannot be written, or has no room, before the work begins; nothing is left there.

    Args:
        folder: of the model.
        out: to write.
        options: of a cut that is known; None: it is looked for.
    """
    if options is not None:
        _require_least_room(folder, out, options)
    existing = next(parent for parent in out.absolute().parents if parent.exists())
    with _writing(out), TemporaryDirectory(dir=existing, prefix=f".{out.name}."):
        pass


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Turn a disk that is full or cannot be written into one sentence."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise ConfigError(
            f"compress: out={out} cannot be written ({reason}); expected a writable folder with free space. Choose "
            "another folder or free some space."
        ) from error


def _perplexity(source: str, original: str, corpus: str | None, tokens: int) -> tuple[float, str] | None:
    if corpus is None:
        return None
    facts = model_facts(source)
    if 4 * facts.parameters > MEMORY_SHARE * _free_bytes():
        warnings.warn(
            f"compress: model={source} takes {4 * facts.parameters:,} bytes in float32 and is not loaded to measure "
            "its perplexity.",
            stacklevel=3,
        )
        return None
    tokenizer = load_tokenizer(original)
    stream = token_stream(corpus, tokenizer, tokens)
    window = int(min(1024, facts.max_position_embeddings or 1024))
    value = perplexity(load_model(source), stream, window_tokens=window)
    return value, describe_protocol(f"{corpus}, documents joined by blank lines,", len(stream), window)


def _free_bytes() -> float:
    """Return the memory that is free; without limit where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return math.inf

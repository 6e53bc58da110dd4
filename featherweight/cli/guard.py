"""`fw guard`: calibrate a guard for a model, score prompts with it, and measure it on labelled ones."""

import json
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from featherweight.cli import guard_folder
from featherweight.cli.given import require_model
from featherweight.cli.guard_folder import (
    BorderlineFpr,
    CategoryFpr,
    Confidence,
    CostRatio,
    GuardFolder,
    Out,
    TargetFpr,
    TargetTpr,
    rates_of,
)
from featherweight.cli.screen import AsJson, leave_cleanly, print_json, print_result
from featherweight.errors import ConfigError

if TYPE_CHECKING:
    from featherweight.guard.ensemble import GuardEnsemble
    from featherweight.guard.guard import PrefixGuard

app = typer.Typer(no_args_is_help=True, help="Let a model refuse what a policy of your own forbids, and nothing else.")

Model = Annotated[
    str, typer.Option("--model", help="Folder or name of the chat model.", callback=require_model, show_default=False)
]
Harmful = Annotated[
    Path,
    typer.Option(
        "--harmful", help="Prompts that ought to be refused: .jsonl, .json, .csv, .tsv or .txt.", show_default=False
    ),
]
Benign = Annotated[Path, typer.Option("--benign", help="Ordinary prompts.", show_default=False)]
Borderline = Annotated[
    Path | None, typer.Option("--borderline", help="Prompts that look alike and are allowed.", show_default=False)
]
Mismatch = Annotated[
    bool, typer.Option("--allow-mismatch", help="Use the guard with another model than that of its calibration.")
]
Tier = Annotated[
    str,
    typer.Option(
        "--tier",
        help="What decides: prefix_hidden, next_token, continuation, probe, probe_hidden, states, states_words or "
        "cascade.",
    ),
]
KeepReadings = Annotated[
    Path | None,
    typer.Option("--keep-readings", help="Folder for prompts and what the model said, for refit.", show_default=False),
]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Prompts that are read together.")]


@app.command("calibrate")
def calibrate(
    model: Model,
    harmful: Harmful,
    benign: Benign,
    out: Out,
    borderline: Borderline = None,
    tier: Tier = "probe_hidden",
    target_fpr: TargetFpr = 0.01,
    target_tpr: TargetTpr = None,
    cost_ratio: CostRatio = None,
    confidence: Confidence = None,
    borderline_fpr: BorderlineFpr = None,
    category_fpr: CategoryFpr = None,
    prefix: Annotated[str, typer.Option("--prefix", help="The forced opening; auto tries several.")] = "auto",
    preamble: Annotated[
        str, typer.Option("--preamble", help="Text in front of it, such as the end of a block of thoughts.")
    ] = "",
    probe_tokens: Annotated[
        int, typer.Option("--probe-tokens", min=1, help="Tokens that the model writes after it.")
    ] = 12,
    text_classifier: Annotated[
        str, typer.Option("--text-classifier", help="bow, encoder or finetune, for the tier probe.")
    ] = "bow",
    on_flag: Annotated[str, typer.Option("--on-flag", help="message, truncate or annotate.")] = "message",
    refusal: Annotated[
        str | None, typer.Option("--refusal", help="What a flagged request gets.", show_default=False)
    ] = None,
    grouped: Annotated[bool, typer.Option("--grouped", help="Keep each category in one part of the data.")] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the parts of the data.")] = 0,
    keep_readings: KeepReadings = None,
    batch_size: BatchSize = 16,
) -> None:
    """Make a guard from prompts that ought to be refused and prompts that ought not.

    The folder holds the guard and report.html: rates with intervals, curves, the prefixes that were tried, and costs.

    [bold]Example[/bold]

    fw guard calibrate --model ./chat --harmful forbidden.jsonl --benign ordinary.jsonl --target-fpr 0.01 --out ./guard
    """
    _require_prompts(harmful, benign, borderline)
    rates = rates_of(category_fpr)
    from featherweight.guard.guard import PrefixGuard

    with leave_cleanly("guard calibrate", None), _warnings_shown():
        loaded, tokenizer = _load(model)
        options: dict[str, Any] = {} if refusal is None else {"refusal_text": refusal}
        with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
            task = bar.add_task("prompts", total=None)
            guard = PrefixGuard.calibrate(
                loaded,
                tokenizer,
                harmful=harmful,
                benign=benign,
                borderline=borderline,
                tier=tier,
                target_fpr=target_fpr,
                target_tpr=target_tpr,
                cost_ratio=cost_ratio,
                confidence=confidence,
                borderline_fpr=borderline_fpr,
                category_fpr=rates,
                prefix=prefix,
                preamble_text=preamble,
                probe_tokens=probe_tokens,
                text_classifier=text_classifier,
                on_flag=on_flag,
                grouped=grouped,
                seed=seed,
                keep_readings=keep_readings,
                batch_size=batch_size,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
                **options,
            )
        guard.save_pretrained(out)
        assert guard.report is not None
        print_result(guard.report, out)


@app.command("score")
def score(
    model: Model,
    guard: GuardFolder,
    source: Annotated[
        str, typer.Argument(metavar="FILE|-", help="Prompts; - reads lines or JSON lines from a pipe.")
    ] = "-",
    allow_mismatch: Mismatch = False,
    batch_size: BatchSize = 16,
) -> None:
    """Print a verdict for each prompt as a line of JSON; exit code 1 if one is flagged.

    The lines hold id, score, probability, flagged, tier and probe_tokens, never the text.

    [bold]Example[/bold]

    fw guard score --model ./chat --guard ./guard prompts.jsonl
    """
    rows = _rows(source)
    with leave_cleanly("guard score", None):
        loaded, tokenizer, ready = _ready(model, guard, allow_mismatch)
        flagged = False
        for start in range(0, len(rows), 8 * batch_size):
            part = rows[start : start + 8 * batch_size]
            verdicts = ready.judge(loaded, tokenizer, [prompt for _, prompt in part], batch_size=batch_size)
            for (name, _), verdict in zip(part, verdicts, strict=True):
                line = {
                    "id": name,
                    "score": verdict.score,
                    "probability": verdict.probability,
                    "flagged": verdict.flagged,
                    "tier": verdict.tier,
                    "probe_tokens": verdict.probe_tokens,
                }
                print(json.dumps(line | ({} if verdict.error is None else {"error": verdict.error})))
                flagged |= verdict.flagged
            sys.stdout.flush()
    raise typer.Exit(int(flagged))


@app.command("eval")
def evaluate(
    model: Model,
    guard: GuardFolder,
    harmful: Harmful,
    benign: Benign,
    borderline: Borderline = None,
    allow_mismatch: Mismatch = False,
    batch_size: BatchSize = 16,
    as_json: AsJson = False,
) -> None:
    """Measure a guard on labelled prompts that its calibration has not seen.

    Run it again after the model was fine-tuned or compressed, with --allow-mismatch: refusals change.

    [bold]Example[/bold]

    fw guard eval --model ./tuned --guard ./guard --harmful bad.jsonl --benign good.jsonl --allow-mismatch
    """
    _require_files(harmful, benign, borderline)
    from featherweight.guard.evaluation import evaluate_guard

    with leave_cleanly("guard eval", None):
        loaded, tokenizer, ready = _ready(model, guard, allow_mismatch)
        report = evaluate_guard(
            ready, loaded, tokenizer, harmful=harmful, benign=benign, borderline=borderline, batch_size=batch_size
        )
        if as_json:
            print_json(json.loads(report.to_json()))
        else:
            print_result(report, None)


@app.command("proxy")
def proxy(
    upstream: Annotated[
        str, typer.Option("--upstream", help="Address of the engine: http://HOST:PORT.", show_default=False)
    ],
    guard: GuardFolder,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; others than this machine's need a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port to listen on.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option("--api-key", help="What clients send; or FEATHERWEIGHT_API_KEY.", show_default=False),
    ] = None,
    upstream_key: Annotated[
        str | None,
        typer.Option("--upstream-key", help="What the engine asks for; or UPSTREAM_API_KEY.", show_default=False),
    ] = None,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds until the engine is given up.")] = 300.0,
    order: Annotated[
        str,
        typer.Option(
            "--order",
            help="probe-first asks for the answer when the verdict has fallen, together at once (held back till then).",
        ),
    ] = "probe-first",
) -> None:
    """Stand in front of an engine that speaks to OpenAI's clients, and pass on only what the guard lets pass.

    The guard must be one of the tier probe, calibrated with the same model: only words cross HTTP. Conversations are
    judged and passed on, nothing else. Bind the engine itself to 127.0.0.1.

    [bold]Example[/bold]

    fw guard proxy --upstream http://127.0.0.1:8001 --guard ./guard
    """
    from featherweight.serving.options import ServeOptions

    key = api_key or os.environ.get("FEATHERWEIGHT_API_KEY") or None
    options = ServeOptions(host=host, port=port, api_key=key, timeout_s=timeout)
    from featherweight.serving.server import run_proxy

    theirs = upstream_key or os.environ.get("UPSTREAM_API_KEY") or None
    run_proxy(upstream, guard, options, upstream_key=theirs, order=order)  # type: ignore[arg-type]  # checked there


app.command("refit")(guard_folder.refit)
app.command("report")(guard_folder.report)
app.command("export")(guard_folder.export)


def _require_prompts(harmful: Path, benign: Path, borderline: Path | None) -> None:
    """Refuse what cannot be read before a model is loaded."""
    _require_files(harmful, benign, borderline)
    if harmful.samefile(benign):
        raise ConfigError(f"fw guard: benign={benign} is the file of --harmful; expected another one. Check the paths.")
    from featherweight.guard.prompt_files import read_prompts

    for path, name in ((harmful, "harmful"), (benign, "benign"), (borderline, "borderline")):
        if path is not None:
            read_prompts(path, name)


def _require_files(*paths: Path | None) -> None:
    for path in paths:
        if path is not None and not path.is_file():
            raise ConfigError(f"fw guard: file={path} is no file; expected prompts. Check the path.")


def _rows(source: str) -> list[tuple[str, Any]]:
    """Return names and conversations of prompts."""
    from featherweight.guard.prompt_files import read_prompt_rows

    if source != "-":
        _require_files(Path(source))
        return read_prompt_rows(Path(source))
    if sys.stdin.isatty():
        raise ConfigError(
            "fw guard score: standard input is a terminal; expected prompts. Give a file, or pipe them in."
        )
    lines = [line.rstrip("\n") for line in sys.stdin]
    return read_prompt_rows([line for line in lines if line.strip()])


def _load(model: str) -> tuple[Any, Any]:
    from featherweight.cli.answer import load

    return load(model, None)


def _ready(model: str, folder: Path, allow_mismatch: bool) -> "tuple[Any, Any, PrefixGuard | GuardEnsemble]":
    from featherweight.guard.ensemble import open_guard

    guard = open_guard([folder])  # damaged files are told before a model is loaded
    loaded, tokenizer = _load(model)
    return loaded, tokenizer, guard.bind(loaded, tokenizer, allow_mismatch=allow_mismatch)


@contextmanager
def _warnings_shown() -> Iterator[None]:
    """Show warnings as sentences, each once, when a guard was made."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", UserWarning)
        yield
    for text in dict.fromkeys(str(one.message) for one in seen):
        Console(stderr=True).print(f"[yellow]warning:[/yellow] {text}", highlight=False, soft_wrap=True)

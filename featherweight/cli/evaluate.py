"""`fw evaluate`: what a finished model can do, on local text, local questions, and tasks of lm-evaluation-harness."""

from pathlib import Path
from typing import Annotated

import typer

from featherweight.cli import answer
from featherweight.cli.screen import AsJson, leave_cleanly, print_json, print_result
from featherweight.errors import ConfigError
from featherweight.text.corpus import require_corpus


def evaluate(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="A model folder, an adapter folder, a .gguf file, or a name such as smollm2.",
            show_default=False,
        ),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option("--text", help="Text to predict: english, python, a file, a folder, hf:name. Default: english."),
    ] = None,
    questions: Annotated[
        list[str] | None,
        typer.Option("--questions", help="Multiple-choice questions: a .jsonl, .json, .csv or .parquet file."),
    ] = None,
    tasks: Annotated[
        str | None, typer.Option("--tasks", help="Tasks of lm-evaluation-harness, separated by commas.")
    ] = None,
    include: Annotated[
        Path | None, typer.Option("--include", help="A folder with YAML files of further tasks of the harness.")
    ] = None,
    shots: Annotated[int | None, typer.Option("--shots", min=0, help="Examples in front of each question.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first so many questions.")] = None,
    tokens: Annotated[int, typer.Option("--tokens", min=2, help="Of each text, the first so many.")] = 16384,
    list_tasks: Annotated[bool, typer.Option("--list-tasks", help="Print the names of all tasks and exit.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A new folder for report.html, report.json and report.csv.")
    ] = None,
    dtype: answer.Dtype = None,
    as_json: AsJson = False,
) -> None:
    """Measure what a model can do: loss and perplexity of a text, multiple choice by likelihood, tasks of the harness.

    Without options: perplexity on english. Questions need no harness, and nothing is generated.

    [bold]Examples[/bold]

    fw evaluate runs/chat/model --text notes.txt

    fw evaluate runs/chat/model --questions test.jsonl --limit 200

    fw evaluate runs/chat/model --tasks arc_easy,my_task --include ./tasks
    """
    names = [name.strip() for name in (tasks or "").split(",") if name.strip()]
    _check(names or (["--list-tasks"] if list_tasks else []), text or [], questions or [], include, out, dtype)
    if list_tasks:
        from featherweight.text.harness import task_names

        print("\n".join(task_names(include)))
        return
    if model is None:
        raise ConfigError("fw evaluate: model=None; expected a model. Write fw evaluate runs/chat/model.")
    answer.require_exportable(model)
    from featherweight.text.evaluation import evaluation_report

    with leave_cleanly("evaluate", [model]):
        loaded, tokenizer = answer.load(model, dtype)
        texts = text or ([] if questions or names else ["english"])
        report, results = evaluation_report(
            loaded,
            tokenizer,
            model,
            texts=texts,
            questions=questions or [],
            tasks=names,
            include=include,
            shots=shots,
            limit=limit,
            tokens=tokens,
        )
        if out is not None:
            from featherweight.training.run import save_report

            save_report(report, out)
        if as_json:
            print_json({"model": model, **results})
        else:
            print_result(report, out)


def _check(
    names: list[str],
    texts: list[str],
    questions: list[str],
    include: Path | None,
    out: Path | None,
    dtype: str | None,
) -> None:
    """Refuse what cannot be done before torch is imported."""
    answer.require_sampling(0.0, None, dtype)
    if include is not None and not include.is_dir():
        raise ConfigError(f"fw evaluate: include={include} is no folder; expected one with YAML files. Correct it.")
    if names:
        from featherweight.text.harness_names import require_harness

        require_harness(names, include)
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"fw evaluate: out={out} is there already; expected a new folder. Choose another name.")
    for source in texts:
        require_corpus(source)
    for source in questions:
        if not Path(source).expanduser().exists() and not source.startswith("hf:"):
            raise ConfigError(f"fw evaluate: questions={source} does not exist; expected a file. Check the path.")

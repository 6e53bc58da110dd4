"""`fw plan`: which recipe fits a budget, before anything is allocated."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from featherweight.cli import completion
from featherweight.cli.data import Columns, IgnoredColumns, Template, TrainOn, columns_of
from featherweight.cli.given import (
    PLAN_TAGS,
    PLAN_UNKNOWNS,
    require_device,
    require_length,
    require_model,
    require_recipe,
    require_size,
    require_tags,
    require_unknown,
)
from featherweight.cli.look import look
from featherweight.cli.plan_ranks import show_ranks
from featherweight.cli.screen import AsJson, leave_cleanly, print_json
from featherweight.errors import ConfigError
from featherweight.report import format_bytes
from featherweight.report.pictures import colour_of

if TYPE_CHECKING:
    from featherweight.planner import Plan, PlanRow
    from featherweight.planner.answers import Answers

_TERMS = ("weights", "gradients", "optimizer_state", "activations", "temporaries", "rest")
_COLOURS = {name: colour_of(name, is_dark=True) for name in _TERMS}
"""Of the letters of a bar: those of the reports."""
_LETTERS = {name: name[0] if name != "optimizer_state" else "s" for name in _COLOURS}
_BAR = 24
_PATIENCE_S = 10.0
"""Seconds without a word on standard error, where that is no terminal."""


def plan(
    recipe: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RECIPE]",
            help="Recipe that gives data, steps and batch.",
            show_default=False,
            callback=require_recipe,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="Name, folder or config.json of the model.",
            show_default=False,
            callback=require_model,
            autocompletion=completion.models,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", help="Chat data to fine-tune the model on: a file, a folder, hf:name.", show_default=False
        ),
    ] = None,
    template: Template = None,
    column: Columns = None,
    ignore_column: IgnoredColumns = None,
    train_on: TrainOn = "assistant",
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget", "-b", help="Memory to use, such as 12GB or 24GiB.", show_default=False, callback=require_size
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            "--device",
            "--card",
            "-d",
            help="A card such as rtx4090, cuda, or cpu.",
            show_default=False,
            callback=require_device,
            autocompletion=completion.cards,
        ),
    ] = None,
    host_memory: Annotated[
        str | None,
        typer.Option(
            "--host-memory",
            help="Second budget: steps layer by layer, with layer inputs and weights on the host.",
            show_default=False,
            callback=require_size,
        ),
    ] = None,
    seq_len: Annotated[int | None, typer.Option("--seq-len", help="Tokens of a row.", show_default=False)] = None,
    tokens_per_step: Annotated[
        int | None, typer.Option("--tokens-per-step", help="Tokens of an optimizer step.", show_default=False)
    ] = None,
    exclude: Annotated[
        str,
        typer.Option(
            "--exclude",
            help=f"What must not be given up: {', '.join(PLAN_TAGS)}.",
            callback=require_tags,
            autocompletion=completion.list_of(PLAN_TAGS),
        ),
    ] = "",
    solve: Annotated[
        str | None,
        typer.Option(
            "--solve",
            help=f"Ask for {', '.join(PLAN_UNKNOWNS[:-1])} or {PLAN_UNKNOWNS[-1]}.",
            show_default=False,
            callback=require_unknown,
            autocompletion=completion.one_of(PLAN_UNKNOWNS),
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit", min=1, help="Stop once so many recipes fit, the most faithful ones first.", show_default=False
        ),
    ] = None,
    why: Annotated[bool, typer.Option("--why", help="Say what fills the memory and what to change.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write the best recipe to this YAML file.", show_default=False)
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", help="Write the plan as an HTML page.", show_default=False)
    ] = None,
    gpus: Annotated[
        int | None,
        typer.Option(
            "--gpus", min=2, help="What each of so many GPUs holds and sends under RECIPE.", show_default=False
        ),
    ] = None,
    calibrate: Annotated[bool, typer.Option("--calibrate", help="First measure this machine's GPU.")] = False,
    as_json: AsJson = False,
) -> None:
    """Find the recipes that fit a budget: simulated steps, no GPU, no weights.

    Every recipe shows what it needs of the device, what it gives up, and an estimate of its speed. --out writes the
    best one: with --data it trains that model on that data. --solve answers how long a sequence, how large a
    micro-batch or rank it allows; with a RECIPE and without a model the question is about that recipe as it stands, and
    so is --why.

    [bold]Examples[/bold]

    fw plan --model llama-7b --budget 12GB --seq-len 1024 --out recipe.yaml

    fw plan --model ./my_model --data chats.jsonl --budget 12GB --out chat.yaml

    fw plan --model ./my_model --device rtx4090 --solve max_seq_len

    fw plan recipe.yaml --budget 16GB --why

    fw plan recipe.yaml --gpus 8 --card h100-80gb

    fw plan --model llama-3-8b --device rtx4090 --host-memory 64GB --solve max_seq_len
    """
    if gpus is not None:
        with leave_cleanly("plan", []):
            fits = show_ranks(recipe, gpus, device=device, budget=budget, report=report, as_json=as_json)
        if not fits:
            raise typer.Exit(1)
        return
    _require_question(recipe, model, seq_len, tokens_per_step, data)
    require_length(model, seq_len)
    if recipe is not None:
        from featherweight.training.recipe import load_recipe

        load_recipe(recipe).check_options()
    seen = None
    if data is not None and model is not None:
        seen = look(
            "fw plan",
            model,
            data,
            columns=columns_of(column),
            ignore_columns=ignore_column or [],
            template=template,
            train_on=train_on,
        )
    from featherweight.planner.answers import answer

    with leave_cleanly("plan", []):
        if calibrate:
            _calibrate(device)
        with simulation_status() as tell:
            answers = answer(
                model,
                budget,
                recipe=recipe if seen is None else seen.recipe(seq_len),
                device=device,
                seq_len=seq_len,
                tokens_per_step=tokens_per_step,
                limit=limit,
                exclude=[tag.strip() for tag in exclude.split(",") if tag.strip()],
                unknown=solve,
                why=why,
                host_memory=host_memory,
                on_progress=tell,
            )
        found = answers.plan
        page = found.report()
        if out is not None and found.rows:
            found.save_recipe(out, () if seen is None else seen.comments(found.best.recipe.task["max_tokens"]))
        if report is not None:
            page.save_html(report)
        if as_json:
            print_json(answers.to_dict())
        else:
            print_answers(answers, out, report)
        if not found.rows:
            raise typer.Exit(1)


def _require_question(
    recipe: Path | None, model: str | None, seq_len: int | None, tokens_per_step: int | None, data: str | None
) -> None:
    """Refuse what no planner is needed for to refuse.

    Raises:
        ConfigError: if there is neither recipe nor model, data come without a model, or a number is out of range.
    """
    if data is not None and (model is None or recipe is not None):
        raise ConfigError(
            f"plan: --data={data} with model={model} and recipe={recipe} leaves open what to train; expected a model "
            "and no recipe. Write, for example: fw plan --model ./model --data chats.jsonl."
        )
    if recipe is None and model is None:
        raise ConfigError("plan: model=None and recipe=None; expected one of them. Name a model such as llama-7b.")
    for option, value, least in (("seq-len", seq_len, 2), ("tokens-per-step", tokens_per_step, 1)):
        if value is not None and value < least:
            raise ConfigError(
                f"plan: --{option}={value} is out of range; expected at least {least}. Leave it out for the usual one."
            )


def print_plan(found: "Plan") -> None:
    """Show a plan at a glance."""
    from featherweight.planner.answers import Answers

    print_answers(Answers(found))


def print_answers(answers: "Answers", out: Path | None = None, report: Path | None = None) -> None:
    """Show a plan at a glance: one line with a bar for each recipe, the budget as the length of the bar."""
    console, found = Console(), answers.plan
    console.print(Text(found.verdict, style="bold"))
    if found.rows:
        console.print(_rows(found))
        legend = Text("bar: ")
        for name, colour in _COLOURS.items():
            legend.append(_LETTERS[name] * 2, style=f"{colour} reverse").append(f" {name.replace('_', ' ')}  ")
        console.print(legend)
        if answers.reasons is None:
            _print_largest(console, found.rows[0])
    for name, reason in found.refused.items():
        console.print(Text(f"no: {name}: {reason}", style="dim"), soft_wrap=True)
    if answers.reasons is not None:
        console.print(Text(f"\n{answers.reasons}"), soft_wrap=True)
    if answers.unsolvable is not None:
        console.print(Text(f"\n{answers.unsolvable}", style="bold"), soft_wrap=True)
    if (solution := answers.solution) is not None:
        value = format_bytes(solution.value) if solution.unknown == "min_memory" else f"{solution.value:,}"
        console.print(Text(f"\n{solution.unknown}: {value}", style="bold"))
    console.print(Text(f"\nAssumed: {'; '.join(found.assumptions)}.", style="dim"))
    if report is not None:
        console.print(Text(f"Report: {report}"), soft_wrap=True)
    if out is not None and found.rows:
        console.print(Text(f"Train it: fw train {out}"), soft_wrap=True)
        _print_open_question(console, found)


def _print_open_question(console: Console, found: "Plan") -> None:
    """Say why `fw train` would refuse the recipe, so that nobody finds out on the training machine."""
    try:
        found.best.recipe.check_weights()
    except ConfigError as problem:
        console.print(Text(f"Not ready: {problem}", style="bold"), soft_wrap=True)


def _rows(found: "Plan") -> Table:
    table = Table(box=None, pad_edge=False, show_edge=False)
    table.add_column("recipe")
    table.add_column("activations")
    table.add_column(f"of {format_bytes(found.target.budget_bytes)}", min_width=_BAR, no_wrap=True)
    table.add_column("needs", justify="right", no_wrap=True)
    table.add_column("tokens/s", justify="right")
    by_host = any(row.host is not None for row in found.rows)
    if by_host:
        table.add_column("of the host", justify="right", no_wrap=True)
    for row in found.rows:
        needed = format_bytes(row.need.total_bytes)
        host = [format_bytes(row.host.total_bytes)] if row.host is not None else [""] * by_host
        bar = _bar(row, found.target.budget_bytes)
        table.add_row(row.family, row.keeping, bar, needed, f"{row.tokens_per_s:,.0f}", *host)
    return table


def _bar(row: "PlanRow", budget_bytes: int) -> Text:
    by_category = row.estimate.peak_by_category
    parts = {name: by_category.get(name, 0) for name in _COLOURS if name != "rest"}  # type: ignore[call-overload]
    parts["rest"] = row.need.total_bytes - sum(parts.values())
    bar, drawn, total = Text(), 0, 0
    for name, size in parts.items():
        total += size
        until = min(_BAR, round(total / budget_bytes * _BAR))
        bar.append(_LETTERS[name] * max(0, until - drawn), style=f"{_COLOURS[name]} reverse")
        drawn = max(drawn, until)
    return bar.append("." * (_BAR - drawn), style="dim")


def _print_largest(console: Console, best: "PlanRow") -> None:
    from featherweight.planner.allocations import allocation_line

    console.print(Text(f"\nLargest at the peak of {best.family} ({best.estimate.timeline.peak().phase})", style="bold"))
    for one in best.estimate.top_allocations(5):
        console.print(Text(allocation_line(one)), soft_wrap=True)


def _calibrate(device: str | None) -> None:
    from featherweight.memory import measure_calibration, save_calibration

    path = save_calibration(measure_calibration(device if device and device.startswith("cuda") else "cuda"))
    Console(stderr=True).print(f"Measured this GPU; kept in {path}")


@contextmanager
def simulation_status() -> Iterator[Callable[[str], None]]:
    """Show on standard error what is being done: all of it on a terminal, elsewhere a line now and then."""
    console = Console(stderr=True)
    if console.is_terminal:
        with console.status("simulating") as status:
            yield lambda text: status.update(f"simulating {text}")
        return
    started = said = time.monotonic()

    def say(text: str) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said >= _PATIENCE_S:
            said = now
            console.print(f"{now - started:.0f} s: simulating {text}", markup=False, highlight=False, soft_wrap=True)

    yield say

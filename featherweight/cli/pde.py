"""`fw pde`: generate data of partial differential equations, train neural operators on them, compare optimizers."""

import os
from pathlib import Path
from typing import Annotated

import typer

from featherweight.cli.compare import compare as run_compare
from featherweight.cli.optimizer_names import FormerSpelling, Optimizers, given_names
from featherweight.cli.screen import AsJson, Overrides, RecipeFile, Resume
from featherweight.cli.train import train as run_train

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help="Neural operators: data, training, comparison.")

Out = Annotated[Path | None, typer.Option("--out", "-o", help="The folder.", show_default=False)]


@app.command()
def generate(
    problem: Annotated[
        str,
        typer.Argument(
            help="darcy, burgers, navier_stokes, advection, reaction_diffusion or shallow_water.", show_default=False
        ),
    ],
    options: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Options of the problem, such as viscosity=1e-4.", show_default=False),
    ] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Training samples.")] = 1000,
    n_test: Annotated[int, typer.Option("--n-test", min=0, help="Test samples.")] = 200,
    resolution: Annotated[int | None, typer.Option(help="Points of an axis.", show_default=False)] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder.")] = Path("data"),
    seed: Annotated[int, typer.Option(min=0, help="Of all samples.")] = 0,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; default: all cores.", show_default=False)
    ] = None,
) -> None:
    """Generate a training and a test file in neuraloperator's layout.

    The same call goes on after an interruption; the samples do not depend on the number of processes.

    [bold]Examples[/bold]

    fw pde generate darcy --n 1000 --resolution 64 --out data/darcy

    fw pde generate navier_stokes viscosity=1e-4 final_time=5 --n 200 --out data/ns
    """
    from featherweight.pde.problem_options import PROBLEM_OPTIONS, require_problem

    require_problem(problem)
    words = list(options or []) + ([f"resolution={resolution}"] if resolution is not None else [])
    config = PROBLEM_OPTIONS[problem][0]().override(words, where="fw pde generate")
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from featherweight.pde.generation import generate as generate_files

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        shown = bar.add_task(problem, total=None)
        paths = generate_files(
            problem,
            out,
            n=n,
            n_test=n_test,
            seed=seed,
            config=config,
            workers=workers or os.cpu_count() or 1,
            progress=lambda done, total: bar.update(shown, completed=done, total=total),
        )
    for path in paths:
        print(path)


@app.command()
def train(
    recipe: RecipeFile, changes: Overrides = None, out: Out = None, resume: Resume = False, as_json: AsJson = False
) -> None:
    """Train as `fw train` does, and say where fields and spectra are drawn: in the run folder."""
    folder = out or _new_folder(recipe, changes, "")
    run_train(recipe, changes, folder, resume, as_json=as_json)
    _tell_pictures(folder, as_json)


@app.command()
def compare(
    recipe: RecipeFile,
    changes: Overrides = None,
    optimizers: Optimizers = "adamw,tensor_galore,tensorgrad",
    out: Out = None,
    resume: Resume = False,
    as_json: AsJson = False,
    methods: FormerSpelling = None,
) -> None:
    """Compare optimizers as `fw compare` does, and say where the fields and spectra of all of them are drawn."""
    folder = out or _new_folder(recipe, changes, "-compare")
    run_compare(recipe, changes, given_names(optimizers, methods), folder, resume, as_json=as_json)
    _tell_pictures(folder, as_json)


def _new_folder(recipe: Path, changes: list[str] | None, suffix: str) -> Path:
    from featherweight.training.recipe import load_recipe
    from featherweight.training.run import run_name
    from featherweight.training.run_folder import new_run_folder

    return new_run_folder(run_name(recipe, load_recipe(recipe, changes or [])) + suffix)


def _tell_pictures(folder: Path, is_silent: bool) -> None:
    pictures = [path for path in (folder / "fields.png", folder / "spectra.png") if path.is_file()]
    if pictures and not is_silent:
        print(f"Pictures: {', '.join(map(str, pictures))}")

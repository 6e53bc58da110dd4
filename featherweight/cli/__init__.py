"""The command line `fw` (also `featherweight`): one file per command.

Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted. A mistake is one sentence on standard error;
FEATHERWEIGHT_DEBUG=1 shows where it came from. The commands import torch and the rest when they run, so that help is
quick.
"""

import io
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated

import typer

import featherweight
from featherweight.cli import adapter as _adapter
from featherweight.cli import bev as _bev
from featherweight.cli import chat as _chat
from featherweight.cli import classify as _classify
from featherweight.cli import compare as _compare
from featherweight.cli import compress as _compress
from featherweight.cli import data as _data
from featherweight.cli import evaluate as _evaluate
from featherweight.cli import export as _export
from featherweight.cli import generate as _generate
from featherweight.cli import guard as _guard
from featherweight.cli import init as _init
from featherweight.cli import measure as _measure
from featherweight.cli import pde as _pde
from featherweight.cli import plan as _plan
from featherweight.cli import robot as _robot
from featherweight.cli import serve as _serve
from featherweight.cli import sweep as _sweep
from featherweight.cli import train as _train
from featherweight.cli.screen import print_error
from featherweight.errors import ConfigError, FeatherweightError, MissingExtraError
from featherweight.import_hook import without_kernel_advice

app = typer.Typer(
    name="fw",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("init")(_init.init)
app.command("train")(_train.train)
app.command("compare")(_compare.compare)
app.command("sweep")(_sweep.sweep)
app.command("measure")(_measure.measure)
app.command("plan")(_plan.plan)
app.command("classify")(_classify.classify)
app.command("chat")(_chat.chat)
app.command("export")(_export.export)
app.command("generate")(_generate.generate)
app.command("evaluate")(_evaluate.evaluate)
app.command("serve")(_serve.serve)
app.add_typer(_data.app)
app.add_typer(_guard.app, name="guard")
app.add_typer(_pde.app, name="pde")
app.add_typer(_bev.app, name="bev")
app.add_typer(_robot.app, name="robot")
app.command("compress")(_compress.compress)
app.add_typer(_adapter.app)


def _print_version(value: bool) -> None:
    if value:
        print(f"featherweight {featherweight.__version__}")
        raise typer.Exit


@app.callback()
def _describe(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Train, fine-tune and measure large models on hardware that you can afford.

    A [bold]recipe[/bold] is a YAML file that says everything about a run; any of its keys can be changed by key=value.

    [bold]Examples[/bold]

    fw init chat.yaml --model ./model --data chats.jsonl

    fw compare examples/recipes/demo.yaml --optimizers adamw,galore_8bit

    fw train recipe.yaml optimizer.rank=64 steps=500 --out runs/rank64

    fw sweep recipe.yaml optimizer.lr=1e-4,2e-4 seed=0,1,2

    fw measure recipe.yaml optimizer=galore_8bit

    fw plan --model llama-7b --budget 12GB --out recipe.yaml

    fw classify runs/intents/model questions.txt

    fw compress ./model --rank-reduction 0.5 --out ./small

    fw chat runs/chat/model

    fw serve runs/chat/model --guard ./guard
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit the process with its code.

    Args:
        arguments: what stands behind the program's name; None takes it from the process.
    """
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; see `main`."""
    warnings.formatwarning = _format_warning
    if os.environ.get("LOCAL_RANK", "0") != "0":
        # One process of each machine says what all of them have found.
        warnings.simplefilter("ignore")
        logging.getLogger("featherweight").setLevel(logging.ERROR)
    without_kernel_advice()
    if sys.platform == "darwin":
        # Apple's GPUs lack some decompositions of matrices; torch reads this once and then computes them on the CPU.
        os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A character that the terminal does not know becomes "?" and must not end a run.
        sys.stdout.reconfigure(errors="replace")
    try:
        # Prints its own usage errors and then leaves by SystemExit, as on every way out.
        app(args=None if arguments is None else list(arguments), prog_name="fw")
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except FeatherweightError as error:
        if os.environ.get("FEATHERWEIGHT_DEBUG") == "1":
            raise
        if not _is_told_elsewhere(error):
            print_error(str(error))
        return 2 if isinstance(error, ConfigError | MissingExtraError) else 1
    return 0


def _is_told_elsewhere(error: FeatherweightError) -> bool:
    """Say whether this is one of several processes, of which another one tells the user; asked without torch if not."""
    if "WORLD_SIZE" not in os.environ:
        return False
    from featherweight.distributed.world import is_told_elsewhere

    return is_told_elsewhere(error)


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Write a warning as one line; where in the code it arose means nothing to a user of the command line."""
    return f"warning: {message}\n"

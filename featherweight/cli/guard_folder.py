"""`fw guard refit | report | export`: what can be done with a guard and its readings without running the model."""

import json
from pathlib import Path
from typing import Annotated

import typer

from featherweight.cli.screen import AsJson, leave_cleanly, print_json, print_result
from featherweight.errors import ConfigError

TargetFpr = Annotated[float, typer.Option("--target-fpr", help="The promised rate of false alarms.")]
TargetTpr = Annotated[
    float | None,
    typer.Option("--target-tpr", help="Promise this rate of flagged harmful requests instead.", show_default=False),
]
CostRatio = Annotated[
    float | None,
    typer.Option(
        "--cost-ratio",
        help="Take the threshold of least cost: a harmful request that passes is as bad as so many false alarms.",
        show_default=False,
    ),
]
Confidence = Annotated[
    float | None,
    typer.Option(
        "--confidence", help="Promise it for this share of calibrations; default: on average.", show_default=False
    ),
]
BorderlineFpr = Annotated[
    float | None,
    typer.Option("--borderline-fpr", help="A promised rate of their own for borderline prompts.", show_default=False),
]
CategoryFpr = Annotated[
    list[str] | None,
    typer.Option("--category-fpr", help="The same for a category of benign prompts: NAME=RATE.", show_default=False),
]
Out = Annotated[Path, typer.Option("--out", help="Folder to write.", show_default=False)]
GuardFolder = Annotated[Path, typer.Option("--guard", help="Folder of the guard.", show_default=False)]


def rates_of(pairs: list[str] | None) -> dict[str, float]:
    """Return the rates of categories.

    Raises:
        ConfigError: for a pair that is none, or a second rate of a category.
    """
    found: dict[str, float] = {}
    for pair in pairs or []:
        name, _, rate = pair.rpartition("=")
        if name in found:
            raise ConfigError(
                f"guard calibrate: category_fpr={pair!r} is a second rate of {name!r}; expected one. Leave one out."
            )
        try:
            found[name] = float(rate)
        except ValueError:
            name = ""
        if not name:
            raise ConfigError(
                f"guard calibrate: category_fpr={pair!r} is no pair; expected NAME=RATE. Write --category-fpr "
                "travel=0.05."
            )
    return found


def refit(
    model: Annotated[
        str, typer.Option("--model", help="The chat model; only its tokenizer is read.", show_default=False)
    ],
    readings: Annotated[
        list[Path],
        typer.Option("--readings", help="Folder that calibrate kept; may be given several times.", show_default=False),
    ],
    out: Out,
    tier: Annotated[str, typer.Option("--tier", help="What decides, as of calibrate.")] = "probe_hidden",
    target_fpr: TargetFpr = 0.01,
    target_tpr: TargetTpr = None,
    cost_ratio: CostRatio = None,
    confidence: Confidence = None,
    borderline_fpr: BorderlineFpr = None,
    category_fpr: CategoryFpr = None,
) -> None:
    """Make a guard of another tier or threshold from what calibrate --keep-readings kept, in seconds.

    [bold]Example[/bold]

    fw guard refit --model ./chat --readings ./readings --tier cascade --target-fpr 0.02 --out ./guard2
    """
    rates = rates_of(category_fpr)
    from featherweight.guard.guard import PrefixGuard
    from featherweight.models.load import load_tokenizer

    with leave_cleanly("guard refit", None):
        guard = PrefixGuard.refit(
            readings,
            load_tokenizer(model),
            tier=tier,
            target_fpr=target_fpr,
            target_tpr=target_tpr,
            cost_ratio=cost_ratio,
            confidence=confidence,
            borderline_fpr=borderline_fpr,
            category_fpr=rates,
        )
        guard.save_pretrained(out)
        assert guard.report is not None
        print_result(guard.report, out)


def report(guard: GuardFolder, as_json: AsJson = False) -> None:
    """Print the report of a guard's calibration.

    [bold]Example[/bold]

    fw guard report --guard ./guard
    """
    from featherweight.guard.storage import read_guard

    found = read_guard(guard).report
    if found is None:
        raise ConfigError(
            f"fw guard report: guard={guard} has no report.json; expected one. Calibrate again, or measure it with fw "
            "guard eval."
        )
    if as_json:
        print_json(json.loads(found.to_json()))
    else:
        print_result(found, guard)


def export(guard: GuardFolder, out: Out) -> None:
    """Write a guard as a folder for transformers: model.generate(custom_generate=FOLDER, trust_remote_code=True).

    [bold]Example[/bold]

    fw guard export --guard ./guard --out ./guarded_generate
    """
    from featherweight.guard.export import export_guard

    export_guard(guard, out)
    typer.echo(f"Use it with model.generate(..., custom_generate={str(out)!r}, trust_remote_code=True)")

"""`compare`: one recipe with one optimizer after the other, and one table of what each costs and reaches."""

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path

from featherweight.distributed.group import refuse_several
from featherweight.errors import ConfigError, DeviceError, NumericsError
from featherweight.report import Report
from featherweight.training.environment import describe_environment, machine_name
from featherweight.training.events import Callback
from featherweight.training.recipe import Recipe, RecipeSource, load_recipe, method_recipe
from featherweight.training.row import Outcome, run_row
from featherweight.training.run import run_name, save_report
from featherweight.training.run_folder import check_free, new_run_folder, require_begun
from featherweight.training.summary import comparison_report

DEFAULT_METHODS = ("adamw", "galore", "galore_8bit")
"""Full-rank AdamW, GaLore, and GaLore with 8-bit moments."""


def compare(
    recipe: RecipeSource,
    methods: Sequence[str] = DEFAULT_METHODS,
    *,
    overrides: Iterable[str] = (),
    out: str | PathLike[str] | None = None,
    resume: bool = False,
    callbacks: Sequence[Callback] | None = None,
) -> Report:
    """Train one recipe with several optimizers in turn: same start, same data, same seed.

    A method takes its options from the recipe's key `compare`; without an entry there, from `optimizer` if that is
    of the same kind, else its defaults, which the report then says. Each method gets its own run folder inside `out`;
    the report is written anew after each of them, so an interruption keeps what is done.

    Args:
        recipe: a recipe, a mapping, or the path of a YAML or JSON file.
        methods: names of optimizers, or of entries of `compare` that give their `name`.
        overrides: "key=value" changes of the recipe, such as "compare.galore.rank=64".
        out: the folder of the comparison; None makes runs/<name>-compare-<time>.
        resume: continue the comparison in `out`: finished methods stay, the interrupted one goes on.
        callbacks: listeners of each run; None shows the progress on standard output, an empty list is silent.

    Returns:
        The report: one table, loss curves, and memory by category; a note for each method that failed. Also in `out` as
        report.html and report.json.

    Raises:
        ConfigError: if the recipe or a method is wrong, before any training; or `out` is not usable.
        CheckpointError: if what is to be resumed belongs to another recipe.
        TrainingInterrupted: after a requested stop.
        FeatherweightError: that of the first method, if all failed.
    """
    refuse_several("compare")
    base = load_recipe(recipe, overrides)
    recipes = {method: method_recipe(base, method) for method in methods}
    if not recipes:
        raise ConfigError(
            "compare: methods=[] is empty; expected names of optimizers. Name at least one, for example adamw."
        )
    for one in recipes.values():
        one.check_options()
    name = run_name(recipe, base)
    folder = Path(out) if out is not None else new_run_folder(f"{name}-compare")
    if resume:
        require_begun(folder, "compare", "comparison")
    else:
        for method in recipes:
            check_free(folder / method)  # now, and not after the methods before it have trained for hours
    done: dict[str, Outcome] = {}
    failed: dict[str, Exception] = {}
    report = Report(name)
    for method, one in recipes.items():
        # All start from the same model; the first has evaluated it. Nobody goes on with more steps here.
        one = one.override(["checkpoint_at_end=false", *(["evaluate_at_start=false"] if done else [])])
        outcome = run_row(method, one, folder / method, resume, callbacks, (ConfigError, NumericsError, DeviceError))
        if isinstance(outcome, Exception):
            if isinstance(outcome, ConfigError) and not done:
                raise outcome  # nothing is lost yet, and most mistakes of a recipe concern every method
            # That one optimizer diverges or does not fit into the memory is a result too.
            failed[method] = outcome
        else:
            done[method] = outcome
        if done:
            report = _report(f"{name}: {', '.join(done)}", recipes, done, failed)
            save_report(report, folder)
    if not done:
        raise next(iter(failed.values()))
    base.task_class.illustrate_together({method: folder / method for method in done}, folder)
    return report


def _report(
    title: str,
    recipes: Mapping[str, Recipe],
    done: Mapping[str, Outcome],
    failed: Mapping[str, Exception],
) -> Report:
    report = comparison_report(title, done, machine_name(describe_environment()))
    if bare := [method for method, each in recipes.items() if each.optimizer.keys() == {"name"}]:
        report.add_note(
            f"{', '.join(bare)}: default options, learning rate included, because the recipe gives none for this kind "
            "of optimizer. Add some under the key 'compare' for a fair comparison.",
            title="Default options",
        )
    for loser, reason in failed.items():
        report.add_note(str(reason), title=failure_title(loser))
    return report


def failure_title(method: str) -> str:
    """Return the title of the note of a report that says why a method has no results."""
    return f"{method} did not finish"

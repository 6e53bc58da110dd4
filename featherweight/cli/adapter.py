"""`fw adapter`: look at S2FT adapters, merge, fuse, compare, export and time them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featherweight.cli.given import require_adapter, require_adapters, require_model
from featherweight.cli.screen import AsJson, leave_cleanly, print_json, print_result

if TYPE_CHECKING:
    from featherweight.methods.s2ft import Adapter

app = typer.Typer(
    name="adapter",
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Look at S2FT adapters, merge, fuse, compare, export and time them.",
)
AdapterFolder = Annotated[
    Path,
    typer.Argument(metavar="ADAPTER", help="Folder of an adapter.", show_default=False, callback=require_adapter),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to write.", show_default=False)]


@app.command("inspect")
def inspect(adapter: AdapterFolder, as_json: AsJson = False) -> None:
    """Show what an adapter changes: modules, channels, parameters, bytes."""
    from featherweight.methods.s2ft import Adapter
    from featherweight.methods.s2ft.merge import describe

    with leave_cleanly("adapter inspect", [str(adapter)]):
        loaded = Adapter.load(adapter)
        if as_json:
            channels = {name: len(change.indices) for name, change in loaded.modules.items()}
            print_json({"parameters": loaded.parameters, "channels": channels})
        else:
            print_result(describe(loaded), None)


@app.command("merge")
def merge(
    adapter: AdapterFolder,
    out: Out,
    base: Annotated[
        str | None,
        typer.Option("--base", help="The base model; default: the one that the adapter names.", callback=require_model),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the base model with the adapter merged, as an ordinary model folder."""
    from featherweight.errors import ConfigError
    from featherweight.methods.s2ft import Adapter
    from featherweight.methods.s2ft.merge import merge_into
    from featherweight.models.load import load_model, load_tokenizer
    from featherweight.models.save import save_model_folder

    with leave_cleanly("adapter merge", [str(adapter)]):
        loaded = Adapter.load(adapter)
        source = base or loaded.config.get("base_model_name_or_path")
        if not source:
            raise ConfigError(
                f"adapter merge: base=None, and {adapter} names no base model; expected a model. Give --base."
            )
        model = load_model(source)
        merge_into(model, loaded)
        save_model_folder(model, load_tokenizer(source), out)
        _say({"model": str(out), "parameters_changed": loaded.parameters}, as_json)


@app.command("fuse")
def fuse(
    adapters: Annotated[
        list[Path], typer.Argument(metavar="ADAPTER...", help="Folders of adapters.", callback=require_adapters)
    ],
    out: Out,
    weights: Annotated[
        str | None, typer.Option("--weights", help="Numbers such as 1,0.5; default: 1 for each.", show_default=False)
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            help="The base model; needed for heads and biases that several adapters train, unless weights add up to 1.",
            show_default=False,
            callback=require_model,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the weighted sum of adapters as one adapter, exactly."""
    from featherweight.errors import ConfigError
    from featherweight.methods.s2ft import Adapter, fuse_adapters
    from featherweight.models.load import load_model

    with leave_cleanly("adapter fuse", [str(one) for one in adapters]):
        try:
            factors = [float(one) for one in weights.split(",")] if weights else [1.0] * len(adapters)
        except ValueError:
            raise ConfigError(
                f"adapter fuse: weights={weights!r} are no numbers; expected one for each adapter. Write 1,0.5."
            ) from None
        parts = {str(one): Adapter.load(one) for one in adapters}
        fused = fuse_adapters(parts, factors, base=None if base is None else load_model(base))
        fused.save(out)
        _say({"adapter": str(out), "parameters": fused.parameters}, as_json)


@app.command("diff")
def diff(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The model before training.", callback=require_model)],
    tuned: Annotated[str, typer.Argument(metavar="TUNED", help="The model after it.", callback=require_model)],
    out: Out,
    official: Annotated[
        bool, typer.Option("--official", help="TUNED comes from the paper's code, which reorders heads and channels.")
    ] = False,
    rows: Annotated[bool, typer.Option("--rows", help="With --official: rows of up and value matrices too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write the adapter that turns one model into another."""
    from featherweight.methods.s2ft import diff as compare
    from featherweight.methods.s2ft import import_official
    from featherweight.models.load import load_model

    with leave_cleanly("adapter diff", [base, tuned]):
        before, after = load_model(base), load_model(tuned)
        found: Adapter = import_official(after, before, allow_rows=rows) if official else compare(before, after)
        found.save(out)
        _say({"adapter": str(out), "modules": len(found.modules), "parameters": found.parameters}, as_json)


@app.command("export")
def export(
    adapter: AdapterFolder,
    out: Out,
    max_rank: Annotated[
        int | None, typer.Option("--max-rank", min=1, help="Bound the rank, with an error that is shown.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write an adapter as LoRA, which any LoRA engine serves; exactly, unless the rank is bounded."""
    from featherweight.methods.s2ft import export_lora

    with leave_cleanly("adapter export", [str(adapter)]):
        report = export_lora(adapter, out, max_rank=max_rank)
        if as_json:
            print_json({"adapter": str(out), **report.section("Facts").facts})  # type: ignore[union-attr]
        else:
            print_result(report, None)


@app.command("bench")
def bench(adapter: AdapterFolder) -> None:
    """Time a switch between adapters of this shape, against the merge of a LoRA adapter of as many parameters."""
    from featherweight.methods.s2ft import Adapter
    from featherweight.methods.s2ft.merge import switch_report

    with leave_cleanly("adapter bench", [str(adapter)]):
        loaded = Adapter.load(adapter)
        print_result(switch_report(loaded, loaded.fingerprint or {}), None)


def _say(facts: dict[str, object], as_json: bool) -> None:
    from featherweight.report import Report

    if as_json:
        print_json(facts)
        return
    report = Report("Written")
    report.add_facts(facts)
    print_result(report, None)

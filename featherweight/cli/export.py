"""`fw export`: copies of a model that other programs open."""

from pathlib import Path
from typing import Annotated, Any

import typer

from featherweight.cli.given import has_no_template, require_exportable, require_model
from featherweight.cli.screen import AsJson, leave_cleanly, print_json, print_result
from featherweight.errors import ConfigError, did_you_mean
from featherweight.models.place import require_adapter_folder

TARGETS = ("hf:fp32", "hf:bf16", "hf:fp16", "gguf:f16", "gguf:q8_0", "gguf:q4_0", "ollama", "adapter")
_MORE = ("ollama:f16", "ollama:q8_0", "ollama:q4_0")


def export(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A model folder, an adapter folder, or a name such as smollm2.",
            show_default=False,
            callback=require_exportable,
        ),
    ],
    to: Annotated[str, typer.Option("--to", help=f"One of {', '.join(TARGETS)}.", show_default=False)],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The folder (hf, ollama) or file (gguf) to make.", show_default=False)
    ],
    base: Annotated[
        str | None,
        typer.Option("--base", help="The model under an adapter; default: the one it names.", callback=require_model),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a copy of a model that other programs open; nothing that is there is replaced.

    Layers of low rank become plain matrices, and adapters are merged. hf is a folder of Hugging Face with weights in
    shards; gguf is one file for llama.cpp (llama family), tokenizer and chat template included; ollama is a folder with
    such a file (q8_0; ollama:f16 and ollama:q4_0 for others) and a Modelfile. adapter is LoRA in PEFT's layout, of one
    rank, for vLLM (from LoRA or S2FT, exactly).

    [bold]Examples[/bold]

    fw export ./small --to hf:bf16 --out ./dense

    fw export runs/chat/model --to gguf:q8_0 --out chat.gguf

    fw export runs/chat/adapter --to adapter --out ./served
    """
    known = (*TARGETS, *_MORE)
    if to not in known:
        raise ConfigError(
            f"fw export: to={to} is unknown; expected one of {', '.join(known)}. {did_you_mean(to, known)}"
        )
    kind, _, dtype = to.partition(":")
    if out.exists() and (not out.is_dir() or any(out.iterdir()) or kind == "gguf"):
        raise ConfigError(f"export: out={out} is there already; expected a new place. Choose another name.")
    _look_first(model, kind, base)
    from featherweight.report import Report

    with leave_cleanly("export", [model, "--to", to]):
        facts: dict[str, Any]
        if kind == "hf":
            from featherweight.models.export import DTYPES, export_folder

            facts = export_folder(model, out, dtype=DTYPES[dtype], base=base)
        elif kind == "adapter":
            from featherweight.models.adapter_export import export_adapter

            facts = export_adapter(model, out)
        elif kind == "ollama":
            from featherweight.models.ollama import export_ollama

            facts = export_ollama(model, out, kind=dtype or "q8_0", base=base)
        else:
            from featherweight.models.gguf_export import export_gguf

            facts = export_gguf(model, out, kind=dtype, base=base)
        if as_json:
            print_json(facts)
            return
        report = Report("Written")
        report.add_facts(facts)
        print_result(report, None)


def _look_first(model: str, kind: str, base: str | None) -> None:
    """Refuse what the model's files show to be impossible, before anything is loaded."""
    if kind == "adapter":
        require_adapter_folder(model)
        if base is not None:
            raise ConfigError(
                f"fw export: base={base} is of no use for --to adapter, which merges nothing; expected none. Leave it "
                "out."
            )
    if kind in ("gguf", "ollama"):
        from featherweight.models.gguf_family import require_gguf_source

        require_gguf_source(model, base)
    if kind == "ollama" and has_no_template(model):
        raise ConfigError(
            f"fw export: model={model} has no chat template (a base model), which Ollama writes conversations by; "
            "expected one. Write the GGUF file alone: --to gguf:q8_0."
        )

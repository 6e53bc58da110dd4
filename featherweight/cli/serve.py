"""`fw serve`: a model behind OpenAI's HTTP interface."""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from featherweight.cli import answer
from featherweight.cli.given import require_template
from featherweight.errors import ConfigError


def serve(
    model: answer.Model,
    guard: Annotated[
        list[Path] | None,
        typer.Option(
            "--guard",
            help="Refuse what the guard in this folder flags; several, or an ensemble: see fw guard.",
            show_default=False,
        ),
    ] = None,
    adapters: Annotated[
        Path | None,
        typer.Option(
            "--adapters",
            help="Folder of adapters (S2FT, LoRA); requests name one as their model.",
            show_default=False,
        ),
    ] = None,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; others than this machine's need a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port to listen on.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key",
            help="What clients must send; better in the variable FEATHERWEIGHT_API_KEY.",
            show_default=False,
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="What the model is called; default: its folder.", show_default=False)
    ] = None,
    max_batch: Annotated[int, typer.Option("--max-batch", min=1, help="Requests that are answered together.")] = 16,
    max_queue: Annotated[int, typer.Option("--max-queue", min=0, help="Requests that wait; more get status 429.")] = 64,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Of an answer, at most.")] = 1024,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds until a request ends.")] = 300.0,
    guard_details: Annotated[
        bool, typer.Option("--guard-details", help="Tell clients score and tier of each verdict.")
    ] = False,
    page: Annotated[bool, typer.Option("--ui", help="Serve a page to chat with at /.")] = False,
    dtype: answer.Dtype = None,
) -> None:
    """Serve a chat model to programs that speak to OpenAI: /v1/chat/completions and its like, streamed or not.

    With a guard, every token waits for the verdict, and a flagged request gets finish_reason content_filter.

    [bold]Examples[/bold]

    fw serve ./chat --guard ./guard

    FEATHERWEIGHT_API_KEY=... fw serve ./chat --host 0.0.0.0
    """
    from featherweight.serving.options import ServeOptions

    options = ServeOptions(
        host=host,
        port=port,
        api_key=api_key or os.environ.get("FEATHERWEIGHT_API_KEY") or None,
        name=name or Path(model).name,
        max_batch=max_batch,
        max_queue=max_queue,
        max_new_tokens=max_new_tokens,
        timeout_s=timeout,
        guard_details=guard_details,
        page=page,
    )
    require_template(model, "fw serve")
    for option, folders in (("guard", guard or []), ("adapters", [] if adapters is None else [adapters])):
        for folder in folders:
            if not folder.is_dir():
                raise ConfigError(f"fw serve: {option}={folder} is no folder; expected one. Check the path.")
    from featherweight.serving.server import serve as run

    loaded, tokenizer = answer.load(model, dtype)
    Console(stderr=True).print(f"{options.name} at http://{host}:{port}/v1, Ctrl-C ends it", highlight=False)
    run(loaded, tokenizer, options, guard_folders=guard or (), adapters_folder=adapters)

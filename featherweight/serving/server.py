"""The start and the end of a server: the model is loaded, requests are taken, running answers are finished."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from featherweight.errors import MissingExtraError
from featherweight.guard.ensemble import open_guard
from featherweight.guard.prefix import require_chat_template
from featherweight.guard.reading import all_stops
from featherweight.serving.adapters import open_adapters
from featherweight.serving.app import make_app
from featherweight.serving.options import ServeOptions
from featherweight.serving.proxy import Order, Upstream, make_proxy


def serve(
    model: Any,
    tokenizer: Any,
    options: ServeOptions,
    *,
    guard_folders: Sequence[Path] = (),
    adapters_folder: Path | None = None,
) -> None:
    """Serve a model until the process is told to end (SIGINT, SIGTERM); running answers are finished.

    Args:
        model: a causal language model.
        tokenizer: its own, with a chat template.
        options: of the server.
        guard_folders: of guards of the model; one that flags is enough. None of them answers everything.
        adapters_folder: whose sub-folders are adapters of S2FT or LoRA, which requests name as their model.

    Raises:
        ConfigError: without a chat template.
        CheckpointError: if the guard is damaged, or of another model.
        MissingExtraError: without the extra serve.
    """
    require_chat_template(tokenizer)
    guard = open_guard(guard_folders).bind(model, tokenizer) if guard_folders else None
    adapters = None
    if adapters_folder is not None:
        adapters = open_adapters(model.eval(), adapters_folder, slots=options.max_batch)
    stops = all_stops(model, tokenizer)
    app = make_app(model, tokenizer, options, guard=guard, stop_token_ids=stops, adapters=adapters)
    _run(app, options)


def run_proxy(
    upstream: str,
    guard_folder: Path,
    options: ServeOptions,
    *,
    upstream_key: str | None = None,
    order: Order = "probe-first",
) -> None:
    """Run the proxy in front of an engine until the process is told to end.

    Args:
        upstream: address of the engine.
        guard_folder: of a guard of the tier probe, or of an ensemble of such.
        options: of the server.
        upstream_key: what the engine asks for.
        order: of probe and answer.

    Raises:
        ConfigError: if the guard looks at more than words, or the address is none.
        CheckpointError: if the guard is damaged.
        MissingExtraError: without the extra serve.
    """
    guard = open_guard([guard_folder])
    _run(make_proxy(guard, Upstream(upstream, upstream_key, options.timeout_s), options, order), options)


def _run(app: Any, options: ServeOptions) -> None:
    try:
        import uvicorn
    except ImportError as error:
        raise MissingExtraError(
            "serve: uvicorn is not installed; expected the extra serve. Run pip install 'featherweight[serve]'."
        ) from error
    uvicorn.run(
        app,
        host=options.host,
        port=options.port,
        log_level="info",
        access_log=False,
        timeout_graceful_shutdown=max(1, round(options.shutdown_s)),
    )

"""The endpoints: chat completions, completions, models, moderations, health and metrics.

No text of a request is ever logged. Nothing of an answer leaves before its verdict: the engine computes none.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from featherweight.errors import MissingExtraError
from featherweight.guard.room import context_of
from featherweight.serving.adapters import RowAdapters
from featherweight.serving.answer import Answer, stream_lines, whole_text
from featherweight.serving.engine import Engine
from featherweight.serving.options import ServeOptions
from featherweight.serving.reply import Reply, verdict_details
from featherweight.serving.request import (
    Asked,
    RequestError,
    parse_chat,
    parse_completion,
    parse_json,
    parse_moderation,
    read_body,
)
from featherweight.serving.service import Service

PAGE = Path(__file__).with_name("page.html")
_POLICY = "default-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; frame-ancestors 'none'"


def make_app(
    model: Any,
    tokenizer: Any,
    options: ServeOptions,
    *,
    guard: Any = None,
    stop_token_ids: tuple[int, ...],
    adapters: RowAdapters | None = None,
) -> Any:
    """Return the application, with its engine.

    Args:
        model: a causal language model.
        tokenizer: its own; chat needs its template.
        options: of the server.
        guard: bound to both, or None.
        stop_token_ids: they end an answer.
        adapters: that requests may name as their model.

    Raises:
        MissingExtraError: without FastAPI.
    """
    try:
        from fastapi import FastAPI, Request
        from fastapi.responses import JSONResponse, Response
    except ImportError as error:
        raise MissingExtraError(
            "serve: fastapi is not installed; expected the extra serve. Run pip install 'featherweight[serve]'."
        ) from error
    engine = Engine(
        model,
        stop_token_ids=stop_token_ids,
        guard=guard,
        max_batch=options.max_batch,
        max_queue=options.max_queue,
        adapters=adapters,
    )
    names = () if adapters is None else adapters.names
    service = Service(engine, tokenizer, options, guard, context_of(model), names)
    endpoints = Endpoints(service)

    @contextlib.asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(engine.close, options.shutdown_s)

    app = FastAPI(title="featherweight", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.service = service

    def route(path: str, run: Callable[[Any], Awaitable[Any]], *, method: str = "POST", is_open: bool = False) -> None:
        async def handle(request: Request) -> Response:
            status = 500
            try:
                if not is_open:
                    service.check_key(request.headers.get("authorization"))
                response: Response = await run(request)
                status = response.status_code
                return response
            except RequestError as error:
                status = error.status
                headers = {"retry-after": "1"} if status in (429, 503) else {}
                return JSONResponse(error.body(), status_code=status, headers=headers)
            finally:
                service.meters.count_request(path, status)

        app.add_api_route(path, handle, methods=[method], response_model=None)

    route("/v1/chat/completions", endpoints.chat)
    route("/v1/completions", endpoints.complete)
    route("/v1/moderations", endpoints.moderate)
    route("/v1/models", endpoints.models, method="GET")
    route("/metrics", endpoints.metrics, method="GET")
    route("/health", endpoints.health, method="GET", is_open=True)
    if options.page:
        route("/", endpoints.page, method="GET", is_open=True)
    return app


class Endpoints:
    """What each address answers; refusals are `RequestError`.

    Args:
        service: of the server.
    """

    def __init__(self, service: Service) -> None:
        self._service, self._options = service, service.options

    async def chat(self, request: Any) -> Any:
        """Answer a conversation."""
        return await self._answer(request, parse_chat, True)

    async def complete(self, request: Any) -> Any:
        """Continue a text."""
        return await self._answer(request, parse_completion, False)

    async def moderate(self, request: Any) -> Any:
        """Judge texts, and answer none."""
        from fastapi.responses import JSONResponse

        service, options = self._service, self._options
        if not service.has_guard:
            raise RequestError(404, "serve: no guard is here to judge; expected one. Start the server with --guard.")
        texts = parse_moderation(parse_json(await read_body(request, self._options.max_body_bytes)))
        results = []
        for text in texts:
            asked = parse_chat({"messages": [{"role": "user", "content": text}], "temperature": 0}, 1)
            job = service.job_of(asked)
            job.max_new_tokens = 0
            service.submit(job)
            found = Answer(service, asked, job)
            await whole_text(found, job, request)
            verdict = found.verdict
            assert verdict is not None, "what is guarded gets a verdict"
            shown = verdict_details(verdict) if options.guard_details else None
            entry: dict[str, Any] = {"flagged": verdict.flagged, "categories": {"policy": verdict.flagged}}
            entry["category_scores"] = {"policy": None if shown is None else shown["probability"]}
            results.append(entry if shown is None else {**entry, "guard": shown})
        return JSONResponse({"id": "modr", "model": options.name, "results": results})

    async def models(self, request: Any) -> Any:
        """Name the model."""
        from fastapi.responses import JSONResponse

        return JSONResponse({"object": "list", "data": self._service.models()})

    async def health(self, request: Any) -> Any:
        """Say whether requests are taken."""
        from fastapi.responses import JSONResponse

        alive = self._service.engine.is_alive
        content = {"status": "ok" if alive else "closing"}
        if self._options.page:  # which shows the name before anybody gives a key
            content["model"] = self._options.name
        return JSONResponse(content, status_code=200 if alive else 503)

    async def page(self, request: Any) -> Any:
        """Show the page for people; it loads nothing from elsewhere."""
        from fastapi.responses import HTMLResponse

        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers={"content-security-policy": _POLICY})

    async def metrics(self, request: Any) -> Any:
        """Tell what was counted."""
        from fastapi.responses import Response

        engine = self._service.engine
        content, kind = self._service.meters.text(engine.waiting, engine.running)
        return Response(content, media_type=kind)

    async def _answer(self, request: Any, parse: Callable[..., Asked], is_chat: bool) -> Any:
        from fastapi.responses import JSONResponse, StreamingResponse

        service, options = self._service, self._options
        asked = parse(parse_json(await read_body(request, self._options.max_body_bytes)), options.max_new_tokens)
        job = service.job_of(asked)
        service.submit(job)
        reply = Reply(
            job.adapter or options.name,
            is_chat=is_chat,
            prompt_tokens=len(job.prompt_ids) + len(job.begun_ids),
            with_details=options.guard_details,
        )
        if asked.is_stream:
            headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
            lines = stream_lines(service, asked, job, reply, is_chat)
            return StreamingResponse(lines, media_type="text/event-stream", headers=headers)
        found = Answer(service, asked, job)
        text = await whole_text(found, job, request)
        headers = {} if found.verdict is None else {"x-guard-verdict": service.word_of(found.verdict)}
        content = reply.whole(text, found.reason, job.written, found.verdict, found.refusal)
        return JSONResponse(content, headers=headers)

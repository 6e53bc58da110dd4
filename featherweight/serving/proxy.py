"""A guard in front of an engine that runs elsewhere and speaks OpenAI's HTTP interface (llama.cpp, vLLM, our own).

Two requests: the first one ends with the forced prefix as the beginning of an answer, and its continuation is judged;
only if it passes does the client's own request go upstream (the order `probe-first`). The engine's cache of prompts
makes the second one cheap. In the order `together` both go at once, and nothing of the answer is read before the
verdict; it is for engines whose running requests share a prompt.
Only words cross HTTP, so the guard must be one of the tier `probe`.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from typing import Any, Literal, get_args

from featherweight.errors import ConfigError, MissingExtraError
from featherweight.guard.ensemble import GuardEnsemble
from featherweight.guard.guard import PrefixGuard
from featherweight.guard.prefix import judged_messages
from featherweight.guard.text_verdict import judge_text, require_text_guard
from featherweight.guard.verdict import Verdict
from featherweight.serving.meters import Meters
from featherweight.serving.options import ServeOptions
from featherweight.serving.reply import Reply
from featherweight.serving.request import Asked, RequestError, parse_chat, parse_json, read_body, require_key

CHAT = "/v1/chat/completions"
Order = Literal["probe-first", "together"]
TextGuard = PrefixGuard | GuardEnsemble
_PASSED_ON = ("content-type", "x-request-id")


class Upstream:
    """The engine behind the proxy.

    Args:
        url: where it listens, without /v1.
        key: its bearer token, or None.
        timeout_s: of one request.
    """

    def __init__(self, url: str, key: str | None, timeout_s: float) -> None:
        try:
            import httpx
        except ImportError as error:
            raise MissingExtraError(
                "guard proxy: httpx is not installed; expected the extra serve. Run pip install 'featherweight[serve]'."
            ) from error
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"guard proxy: upstream={url} is no address; expected http://HOST:PORT. Correct it.")
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        self.client = httpx.AsyncClient(
            base_url=url.rstrip("/").removesuffix("/v1"), headers=headers, timeout=timeout_s
        )

    async def continued(self, messages: Sequence[Mapping[str, Any]], name: str, guard: PrefixGuard) -> tuple[str, bool]:
        """Return what the engine writes after the forced prefix, and whether its reply ends there.

        Raises:
            ValueError: if the reply is none.
        """
        options = guard.options
        forced = options.preamble_text + options.prefix_text
        turns = [*judged_messages(messages), {"role": "assistant", "content": forced}]
        asked = {
            "model": name,
            "messages": turns,
            "temperature": 0,
            "max_tokens": options.probe_tokens,
            "stream": False,
            "add_generation_prompt": False,
            "continue_final_message": True,
        }
        response = await self.client.post(CHAT, json=asked)
        response.raise_for_status()
        choice = response.json()["choices"][0]
        text = str(choice["message"]["content"] or "")
        # Some engines repeat the beginning that they were given.
        text = text.removeprefix(forced)
        if choice.get("finish_reason") not in ("stop", "length"):
            raise ValueError(f"finish_reason={choice.get('finish_reason')!r}")
        return text, choice["finish_reason"] == "stop"

    async def judged(self, messages: Sequence[Mapping[str, Any]], name: str, guard: TextGuard) -> Verdict:
        """Return the verdict on a conversation; the members of an ensemble ask one after the other.

        Each reads the prompt that the engine has in its cache by then; asked at once, none would.

        Raises:
            ValueError: if a reply is none.
        """
        verdicts = []
        for member in (guard.members[place] for place in guard.draw()):
            text, ended = await self.continued(messages, name, member)
            verdicts.append(judge_text(member, text, ended=ended))
        return guard.combine(verdicts)


class Proxy:
    """Judges conversations and passes on those that may be answered.

    Args:
        guard: of the tier probe, or an ensemble of such.
        upstream: the engine.
        options: of the server.
        order: whether the client's request waits for the verdict, or its answer does.

    Raises:
        ConfigError: for another order.
    """

    def __init__(
        self, guard: TextGuard, upstream: Upstream, options: ServeOptions, order: Order = "probe-first"
    ) -> None:
        if order not in get_args(Order):
            raise ConfigError(
                f"guard proxy: order={order!r} is unknown; expected probe-first or together. Write probe-first."
            )
        self._guard, self._upstream, self._options, self._order = guard, upstream, options, order
        self.meters = Meters()

    def check_key(self, header: str | None) -> None:
        """Refuse who does not send the key.

        Raises:
            RequestError: with status 401.
        """
        require_key(self._options.api_key, header)

    async def answer(self, request: Any) -> Any:
        """Return the engine's answer, or a refusal; whatever goes wrong in judging is a refusal, too."""
        body = parse_json(await read_body(request, self._options.max_body_bytes))
        # What else stands there is for the engine to understand or refuse.
        asked = parse_chat({key: body[key] for key in ("messages", "stream") if key in body}, 1)
        # Written anew: of a key that stands there twice, the engine might read the other one.
        answer = _Answer(self.passed_on("POST", CHAT, json.dumps(body).encode()))
        try:
            if self._order == "together":
                answer.begin()
            return await self._decided(asked, str(body.get("model") or ""), answer)
        finally:
            await answer.drop()

    async def _decided(self, asked: Asked, name: str, answer: "_Answer") -> Any:
        try:
            verdict = await self._upstream.judged(asked.prompt, name, self._guard)
        except Exception as error:  # the engine is away, slow, or says something else
            verdict = Verdict(True, float("nan"), "none", 0, error=type(error).__name__)
        is_shadow = self._guard.options.on_flag == "annotate" and verdict.error is None
        self.meters.count_verdict(verdict, "pass" if not verdict.flagged else "shadow" if is_shadow else "block")
        if not verdict.flagged or is_shadow:
            return await answer.take()
        return self._refused(verdict, asked.is_stream, name, asked.prompt)

    async def passed_on(self, method: str, path: str, body: bytes) -> Any:
        """Return what the engine says to a request, byte by byte as it comes.

        Raises:
            RequestError: with status 502 if it cannot be reached.
        """
        import httpx
        from fastapi.responses import StreamingResponse

        client = self._upstream.client
        headers = {"content-type": "application/json"}
        try:
            response = await client.send(client.build_request(method, path, content=body, headers=headers), stream=True)
        except httpx.HTTPError as error:
            raise RequestError(502, f"guard proxy: the engine cannot be reached ({type(error).__name__}).") from error

        async def parts() -> AsyncIterator[bytes]:
            try:
                async for part in response.aiter_bytes():
                    yield part
            finally:
                # Also when the client has gone, which ends the engine's work.
                await response.aclose()

        kept = {name: value for name, value in response.headers.items() if name in _PASSED_ON}
        return StreamingResponse(parts(), status_code=response.status_code, headers=kept)

    def _refused(self, verdict: Verdict, is_stream: bool, name: str, messages: Any) -> Any:
        from fastapi.responses import JSONResponse, StreamingResponse

        reply = Reply(name, is_chat=True, prompt_tokens=0, with_details=self._options.guard_details)
        refusal = self._guard.refusal(verdict, messages)
        if not is_stream:
            content = reply.whole("", "content_filter", 0, verdict, refusal)
            return JSONResponse(content, headers={"x-guard-verdict": "block"})
        lines = [
            reply.piece(is_first=True),
            reply.piece(refusal, is_refusal=True),
            reply.end("content_filter", verdict),
        ]
        return StreamingResponse(iter([*lines, "data: [DONE]\n\n"]), media_type="text/event-stream")


class _Answer:
    """The engine's answer to a request, asked for before or after the verdict, and given up if nobody takes it."""

    def __init__(self, asking: Coroutine[Any, Any, Any]) -> None:
        self._asking: Coroutine[Any, Any, Any] | None = asking
        self._task: asyncio.Task[Any] | None = None

    def begin(self) -> None:
        """Ask at once; what comes waits."""
        assert self._asking is not None
        self._task, self._asking = asyncio.create_task(self._asking), None

    async def take(self) -> Any:
        """Return the answer; it is the client's now."""
        waited, self._asking, self._task = self._task or self._asking, None, None
        assert waited is not None
        return await waited

    async def drop(self) -> None:
        """Give up what was not taken, which ends the engine's work on it."""
        if self._asking is not None:
            self._asking.close()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError, RequestError):
                response = await self._task
                await response.body_iterator.aclose()


def make_proxy(guard: TextGuard, upstream: Upstream, options: ServeOptions, order: Order = "probe-first") -> Any:
    """Return the application.

    Args:
        guard: of the tier probe, or an ensemble of such.
        upstream: the engine.
        options: of the server; its limits of batch and queue are the engine's own.
        order: of the two requests.

    Raises:
        ConfigError: if the guard looks at what does not cross HTTP.
        MissingExtraError: without FastAPI.
    """
    try:
        from fastapi import FastAPI, Request
        from fastapi.responses import JSONResponse, Response
    except ImportError as error:
        raise MissingExtraError(
            "guard proxy: fastapi is not installed; expected the extra serve. Run pip install 'featherweight[serve]'."
        ) from error
    require_text_guard(guard, "guard proxy")
    proxy = Proxy(guard, upstream, options, order)

    @contextlib.asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        yield
        await upstream.client.aclose()

    app = FastAPI(title="featherweight guard", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)

    async def handle(request: Request) -> Response:
        try:
            proxy.check_key(request.headers.get("authorization"))
            found: Response = await proxy.answer(request)
            return found
        except RequestError as error:
            return JSONResponse(error.body(), status_code=error.status)

    async def models(request: Request) -> Response:
        try:
            proxy.check_key(request.headers.get("authorization"))
            return await proxy.passed_on("GET", "/v1/models", b"")
        except RequestError as error:
            return JSONResponse(error.body(), status_code=error.status)

    async def health() -> dict[str, str]:
        return {"status": "ok"}

    # Nothing else is passed on: what is not judged does not get through.
    app.add_api_route(CHAT, handle, methods=["POST"], response_model=None)
    app.add_api_route("/v1/models", models, methods=["GET"], response_model=None)
    app.add_api_route("/health", health, methods=["GET"])
    return app

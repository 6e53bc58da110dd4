"""An answer on its way to the client: events of the engine become text, whole or piece by piece."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from featherweight.guard.verdict import Verdict
from featherweight.serving.job import Ended, Job, TokenWritten, VerdictFell
from featherweight.serving.reply import Reply
from featherweight.serving.request import Asked, RequestError
from featherweight.serving.service import Service

HOLD_S = 5.0
"""A stream that waits for its verdict says so this often."""


class Answer:
    """An answer as text, piece by piece, with stop texts cut off.

    Args:
        service: whose engine answers.
        asked: the request.
        job: its job, submitted.
    """

    def __init__(self, service: Service, asked: Asked, job: Job) -> None:
        self._service, self._asked, self._job = service, asked, job
        self._text, self._held, self._refusal = service.writer(), "", ""
        self.verdict: Verdict | None = None
        self.refusal: str | None = None
        self.reason = "stop"

    async def pieces(self) -> AsyncIterator[str | None]:
        """Yield pieces of text; None whenever nothing came for a while.

        Raises:
            RequestError: if the engine failed.
        """
        job, service = self._job, self._service
        while True:
            try:
                event = await asyncio.wait_for(job.events.get(), HOLD_S)
            except TimeoutError:
                yield None
                continue
            if isinstance(event, VerdictFell):
                self.verdict = event.verdict
                service.meters.count_verdict(event.verdict, service.word_of(event.verdict))
            elif isinstance(event, TokenWritten) and self._refuses:
                self._refusal += self._text.add(event.token_id)
            elif isinstance(event, TokenWritten):
                piece, is_over = self._cut(self._text.add(event.token_id))
                if piece:
                    yield piece
                if is_over:
                    job.cancel()
                    break
            else:
                if self._refuses:
                    self._refusal += self._text.rest()
                self._end(event)
                rest, _ = self._cut(self._text.rest(), is_last=True)
                if rest and self.refusal is None:
                    yield rest
                break
        service.meters.count_answer(job.written, job.seconds)

    def _end(self, event: Ended) -> None:
        self.reason = {"timeout": "length"}.get(event.reason, event.reason)
        if event.reason == "error":
            status = 400 if event.message.startswith(("guard:", "prefill:")) else 503
            raise RequestError(status, event.message or "serve: the answer failed; expected one. Ask again.")
        if self._refuses and event.reason in ("stop", "length"):
            self.reason, self.refusal = "content_filter", self._refusal.strip()
        elif event.reason == "content_filter":
            assert self.verdict is not None
            self.refusal = self._service.refusal(self.verdict, self._asked.prompt)

    @property
    def _refuses(self) -> bool:
        """Whether the tokens that come are a refusal which the model writes itself."""
        return self.verdict is not None and self.verdict.flagged and self._service.continues

    def _cut(self, piece: str, *, is_last: bool = False) -> tuple[str, bool]:
        """Return what may be shown, and whether a stop text was reached; its beginning is held back."""
        stops = self._asked.stops
        if not stops:
            return piece, False
        text = self._held + piece
        places = [place for place in (text.find(stop) for stop in stops) if place >= 0]
        if places:
            self._held = ""
            return text[: min(places)], True
        held = 0 if is_last else max((_overlap(text, stop) for stop in stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held], False


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of a text may begin a stop text."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)


async def whole_text(found: Answer, job: Job, request: Any) -> str:
    """Return a whole answer; give it up when the client has gone."""
    text, count = "", 0
    try:
        async for piece in found.pieces():
            count += 1
            if (piece is None or count % 16 == 0) and await request.is_disconnected():
                raise RequestError(499, "serve: the client has gone.")
            text += piece or ""
        return text
    finally:
        job.cancel()


async def stream_lines(service: Service, asked: Asked, job: Job, reply: Reply, is_chat: bool) -> AsyncIterator[str]:
    """Yield the lines of a stream: the role, comments while the verdict is open, pieces, the end, the usage."""
    found = Answer(service, asked, job)
    try:
        if is_chat:
            yield reply.piece(is_first=True)
        yield ": hold\n\n"
        try:
            async for piece in found.pieces():
                yield ": hold\n\n" if piece is None else reply.piece(piece)
        except RequestError as error:
            yield reply.error_piece(error.body())
            return
        if found.refusal is not None:
            yield reply.piece(found.refusal, is_refusal=True)
        yield reply.end(found.reason, found.verdict)
        if asked.with_usage:
            yield reply.usage_piece(job.written, found.verdict)
        yield "data: [DONE]\n\n"
    finally:
        # Also when the client has gone: the rows of the request leave the batch.
        job.cancel()

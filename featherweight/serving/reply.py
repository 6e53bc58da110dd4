"""What a client gets, in OpenAI's shapes: whole answers, pieces of a stream, verdicts and usage."""

import json
import time
import uuid
from typing import Any

from featherweight.guard.verdict import Verdict


class Reply:
    """Builds the parts of one reply.

    Args:
        name: of the model.
        is_chat: chat completions, otherwise text completions.
        prompt_tokens: of the request.
        with_details: tell score and tier of the verdict.
    """

    def __init__(self, name: str, *, is_chat: bool, prompt_tokens: int, with_details: bool) -> None:
        self._is_chat, self._with_details, self._prompt_tokens = is_chat, with_details, prompt_tokens
        kind = "chatcmpl" if is_chat else "cmpl"
        self._head = {"id": f"{kind}-{uuid.uuid4().hex}", "created": int(time.time()), "model": name}
        self._object = "chat.completion" if is_chat else "text_completion"

    def whole(
        self, text: str, reason: str, tokens: int, verdict: Verdict | None, refusal: str | None
    ) -> dict[str, Any]:
        """Return a whole answer; `refusal` is the text that stands for it if it is flagged."""
        choice: dict[str, Any] = {"index": 0, "finish_reason": reason, "logprobs": None}
        if self._is_chat:
            content = None if refusal is not None else text
            choice["message"] = {"role": "assistant", "content": content, "refusal": refusal}
        else:
            choice["text"] = text if refusal is None else refusal
        found = {**self._head, "object": self._object, "choices": [choice], "usage": self.usage(tokens, verdict)}
        return found | self._guard(verdict)

    def piece(self, text: str = "", *, is_first: bool = False, is_refusal: bool = False) -> str:
        """Return a piece of a stream, as a line of server-sent events."""
        if not self._is_chat:
            return self._event({"index": 0, "text": text, "finish_reason": None, "logprobs": None})
        delta: dict[str, Any] = {"role": "assistant", "content": ""} if is_first else {}
        if text:
            delta["refusal" if is_refusal else "content"] = text
        return self._event({"index": 0, "delta": delta, "finish_reason": None, "logprobs": None})

    def end(self, reason: str, verdict: Verdict | None) -> str:
        """Return the piece that ends a stream."""
        choice: dict[str, Any] = {"index": 0, "finish_reason": reason, "logprobs": None}
        choice["delta" if self._is_chat else "text"] = {} if self._is_chat else ""
        return self._event(choice, self._guard(verdict))

    def error_piece(self, content: dict[str, Any]) -> str:
        """Return the piece that ends a stream which failed."""
        return self._line(content)

    def usage_piece(self, tokens: int, verdict: Verdict | None) -> str:
        """Return the piece with the usage, which has no choice."""
        return self._line({**self._stream_head(), "choices": [], "usage": self.usage(tokens, verdict)})

    def usage(self, tokens: int, verdict: Verdict | None) -> dict[str, Any]:
        """Return what was read and written; tokens of the probe stand apart, as the client does not get them."""
        probe = 0 if verdict is None else verdict.probe_tokens
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": tokens,
            "total_tokens": self._prompt_tokens + tokens,
            "completion_tokens_details": {"guard_probe_tokens": probe},
        }

    def _guard(self, verdict: Verdict | None) -> dict[str, Any]:
        if verdict is None or not self._with_details:
            return {}
        return {"guard": verdict_details(verdict)}

    def _stream_head(self) -> dict[str, Any]:
        return {**self._head, "object": "chat.completion.chunk" if self._is_chat else self._object}

    def _event(self, choice: dict[str, Any], more: dict[str, Any] | None = None) -> str:
        return self._line({**self._stream_head(), "choices": [choice], **(more or {})})

    @staticmethod
    def _line(content: dict[str, Any]) -> str:
        return f"data: {json.dumps(content, ensure_ascii=False, allow_nan=False)}\n\n"


def verdict_details(verdict: Verdict) -> dict[str, Any]:
    """Return a verdict for whoever may see it; a score that is no number is null."""
    return {
        "flagged": verdict.flagged,
        "score": verdict.score if verdict.error is None else None,
        "probability": verdict.probability,
        "tier": verdict.tier,
        "probe_tokens": verdict.probe_tokens,
        "error": verdict.error,
    }

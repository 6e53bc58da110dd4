"""What a client asks, in OpenAI's words, checked: one clear sentence for what cannot be done."""

import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from featherweight.models.sampling import GREEDY, Sampling


class RequestError(Exception):
    """A request that is refused, with its HTTP status."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def body(self) -> dict[str, Any]:
        """Return the error in OpenAI's shape."""
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(self.status, "invalid_request_error")
        kind = kind if self.status < 500 else "server_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True)
class Asked:
    """A request for an answer."""

    prompt: Any
    """A conversation, or a text to continue."""
    max_new_tokens: int
    sampling: Sampling
    seed: int
    is_stream: bool
    with_usage: bool
    stops: tuple[str, ...] = field(default=())
    model: str | None = None
    """What the client calls the model: its name, or that of an adapter."""


_UNSUPPORTED = (
    "tools",
    "functions",
    "tool_choice",
    "logprobs",
    "top_logprobs",
    "audio",
    "logit_bias",
    "suffix",
    "echo",
)
_ROLES = ("system", "developer", "user", "assistant", "tool")


def require_key(key: str | None, header: str | None) -> None:
    """Refuse who does not send the key; comparing takes the same time for every guess.

    Raises:
        RequestError: with status 401.
    """
    if key is not None and not hmac.compare_digest((header or "").encode(), f"Bearer {key}".encode()):
        raise RequestError(401, "serve: the key is missing or wrong; expected a bearer token.", code="invalid_api_key")


async def read_body(request: Any, limit: int) -> bytes:
    """Return the body of a request.

    Raises:
        RequestError: with status 413 as soon as it is larger than the limit, and 499 if the client breaks off.
    """
    from starlette.requests import ClientDisconnect

    parts, size = [], 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > limit:
                raise RequestError(413, f"serve: the body has more than {limit} bytes; expected fewer.")
            parts.append(part)
    except ClientDisconnect:
        raise RequestError(499, "serve: the client broke off in the middle of its request.") from None
    return b"".join(parts)


def parse_json(body: bytes) -> Mapping[str, Any]:
    """Return the object of a request body.

    Raises:
        RequestError: if it is none.
    """
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        raise RequestError(400, "serve: the body is no JSON; expected an object. Send application/json.") from None
    if not isinstance(found, dict):
        raise RequestError(400, f"serve: the body is a JSON {type(found).__name__}; expected an object. Send one.")
    return found


def parse_chat(body: Mapping[str, Any], limit: int) -> Asked:
    """Return what /v1/chat/completions was asked.

    Raises:
        RequestError: for what is missing, of a wrong type, or not done here.
    """
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RequestError(
            400, "serve: messages is no list of turns; expected at least one. Add one.", param="messages"
        )
    return _asked(body, [_message(one, index) for index, one in enumerate(messages)], limit)


def parse_completion(body: Mapping[str, Any], limit: int) -> Asked:
    """Return what /v1/completions was asked.

    Raises:
        RequestError: for what is missing, of a wrong type, or not done here.
    """
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str) or not prompt:
        raise RequestError(
            400, "serve: prompt is no text; expected one text. Send one prompt a request.", param="prompt"
        )
    return _asked(body, prompt, limit)


def parse_moderation(body: Mapping[str, Any]) -> list[str]:
    """Return the texts that /v1/moderations was asked to judge.

    Raises:
        RequestError: if there are none.
    """
    texts = body.get("input")
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not texts or not all(isinstance(one, str) for one in texts):
        raise RequestError(
            400, "serve: input is no text and no list of texts; expected some. Send texts.", param="input"
        )
    if len(texts) > 64:
        raise RequestError(400, f"serve: input={len(texts)} texts; expected at most 64. Send fewer.", param="input")
    return texts


def _message(one: Any, index: int) -> dict[str, Any]:
    param = f"messages[{index}]"
    if not isinstance(one, dict) or one.get("role") not in _ROLES:
        raise RequestError(
            400, f"serve: {param} has no known role; expected one of {', '.join(_ROLES)}. Add it.", param=param
        )
    content = one.get("content")
    if isinstance(content, list):
        if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
            raise RequestError(
                400, f"serve: {param} has parts that are no text; expected text. Leave them out.", param=param
            )
        content = "".join(part["text"] for part in content)
    if content is None and one["role"] == "assistant":
        content = str(one.get("refusal") or "")
    if not isinstance(content, str):
        raise RequestError(400, f"serve: {param}.content is no text; expected one. Send text.", param=param)
    return {"role": "system" if one["role"] == "developer" else one["role"], "content": content}


def _asked(body: Mapping[str, Any], prompt: Any, limit: int) -> Asked:
    for name in _UNSUPPORTED:
        if body.get(name) not in (None, False, [], {}, "none", 0, ""):
            raise RequestError(400, f"serve: {name} is not done here; expected none. Leave it out.", param=name)
    if body.get("n") not in (None, 1) or body.get("best_of") not in (None, 1):
        raise RequestError(400, "serve: n is not 1; expected one answer a request. Send several requests.", param="n")
    form = body.get("response_format")
    if form is not None and not (isinstance(form, dict) and form.get("type") == "text"):
        raise RequestError(
            400, "serve: response_format is not text; expected text. Leave it out.", param="response_format"
        )
    tokens = _number(body, "max_completion_tokens", 1, 10**9, None, whole=True)
    tokens = tokens or _number(body, "max_tokens", 1, 10**9, None, whole=True) or limit
    temperature = _number(body, "temperature", 0, 100, 1.0)
    top_p = _number(body, "top_p", 0, 1, 1.0)
    sampling = GREEDY
    if temperature:
        sampling = Sampling(temperature=float(temperature), top_p=None if top_p in (0, 1) else float(top_p))
    stops = body.get("stop")
    stops = [] if stops is None else [stops] if isinstance(stops, str) else stops
    if not isinstance(stops, list) or len(stops) > 8 or not all(isinstance(one, str) and one for one in stops):
        raise RequestError(400, "serve: stop is no text and no list of up to 8 texts; expected those.", param="stop")
    stream_options = body.get("stream_options") or {}
    for name, value in (("stream", body.get("stream")), ("include_usage", dict_get(stream_options, "include_usage"))):
        if value not in (None, True, False) or isinstance(value, int) and not isinstance(value, bool):
            raise RequestError(400, f"serve: {name} is no boolean; expected true or false.", param=name)
    model = body.get("model")
    if model is not None and not isinstance(model, str):
        raise RequestError(400, "serve: model is no text; expected a name. Send one.", param="model")
    seed = _number(body, "seed", -(2**63), 2**63 - 1, None, whole=True)
    return Asked(
        prompt,
        min(int(tokens), limit),
        sampling,
        _fresh_seed() if seed is None else int(seed) % 2**63,
        bool(body.get("stream")),
        bool(dict_get(stream_options, "include_usage")),
        tuple(stops),
        model,
    )


def dict_get(value: Any, name: str) -> Any:
    """Return an entry of an object; None of anything else."""
    return value.get(name) if isinstance(value, dict) else None


def _number(
    body: Mapping[str, Any], name: str, least: float, most: float, otherwise: float | None, *, whole: bool = False
) -> Any:
    value = body.get(name)
    if value is None:
        return otherwise
    kinds = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= most:
        kind = "whole number" if whole else "number"
        raise RequestError(
            400, f"serve: {name}={value!r:.40} is out of range; expected a {kind} from {least} to {most}.", param=name
        )
    return value


def _fresh_seed() -> int:
    import secrets

    return secrets.randbits(62)

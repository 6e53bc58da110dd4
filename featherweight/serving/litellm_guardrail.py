"""The guard as a guardrail of LiteLLM's proxy: the engine behind it continues the forced prefix, and words are judged.

    guardrails:
      - guardrail_name: policy
        litellm_params:
          guardrail: featherweight.serving.litellm_guardrail.PrefixGuardrail
          mode: pre_call
          guard: ./guard
          upstream: http://127.0.0.1:8001

LiteLLM is an optional package. A request that cannot be judged is blocked.
"""

import importlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from featherweight.errors import ConfigError, MissingExtraError
from featherweight.guard.ensemble import open_guard
from featherweight.guard.text_verdict import require_text_guard
from featherweight.guard.verdict import Verdict
from featherweight.serving.proxy import TextGuard, Upstream


class Flagged(ValueError):
    """A request that is refused; LiteLLM hands the text on to the client."""


class TextGuardrail:
    """What judges conversations that LiteLLM is about to pass on; knows nothing of LiteLLM.

    Args:
        guard: of the tier probe alone, or an ensemble of such.
        upstream: the engine that continues the forced prefix.
    """

    def __init__(self, guard: TextGuard, upstream: Upstream) -> None:
        require_text_guard(guard, "guardrail")
        self._guard, self._upstream = guard, upstream

    async def check(self, data: Mapping[str, Any]) -> Verdict:
        """Judge a request.

        Args:
            data: with `messages` and `model`.

        Raises:
            Flagged: with the refusal text, if it is flagged or cannot be judged.
        """
        messages = data.get("messages")
        try:
            if not isinstance(messages, list) or not messages:
                raise ConfigError("guardrail: messages are none; expected a conversation.")
            verdict = await self._upstream.judged(messages, str(data.get("model") or ""), self._guard)
        except Exception as error:  # the engine is away, slow, or says something else
            verdict = Verdict(True, float("nan"), "none", 0, error=type(error).__name__)
        if verdict.flagged and (self._guard.options.on_flag != "annotate" or verdict.error is not None):
            raise Flagged(self._guard.refusal(verdict, messages))
        return verdict


def __getattr__(name: str) -> Any:
    """Make the class that LiteLLM's configuration names; only then LiteLLM is needed.

    Raises:
        MissingExtraError: if it is not installed.
    """
    if name != "PrefixGuardrail":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _guardrail_class()


@cache
def _guardrail_class() -> Any:
    try:
        home = importlib.import_module("litellm.integrations.custom_guardrail")
    except ImportError as error:
        raise MissingExtraError(
            "guardrail: litellm is not installed; expected it beside its proxy. Run pip install 'litellm[proxy]'."
        ) from error

    def start(self: Any, *, guard: str, upstream: str, upstream_key: str | None = None, **options: Any) -> None:
        home.CustomGuardrail.__init__(self, **options)
        self.inner = TextGuardrail(open_guard([Path(guard)]), Upstream(upstream, upstream_key, 60.0))

    async def judge(self: Any, user_api_key_dict: Any, cache: Any, data: dict[str, Any], call_type: str) -> Any:
        await self.inner.check(data)
        return data

    return type("PrefixGuardrail", (home.CustomGuardrail,), {"__init__": start, "async_pre_call_hook": judge})

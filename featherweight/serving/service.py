"""What stands between HTTP and the engine: the key, the tokens of a request, its place in the queue, its verdict."""

import time
from collections.abc import Sequence
from typing import Any

from featherweight.errors import ConfigError
from featherweight.guard.prefix import answer_ids
from featherweight.guard.room import reserved_tokens
from featherweight.guard.verdict import Verdict
from featherweight.models.chat import GrowingText, encode_text
from featherweight.serving.engine import Busy, Closing, Engine
from featherweight.serving.job import Job
from featherweight.serving.meters import Meters
from featherweight.serving.options import ServeOptions
from featherweight.serving.request import Asked, RequestError, require_key


class Service:
    """What the endpoints do.

    Args:
        engine: answers.
        tokenizer: of its model.
        options: of the server.
        guard: of the engine, or an ensemble, or None.
        context: tokens that the model can read; None if it does not say.
        adapters: names that requests may give as `model`, beside that of the model itself.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Any,
        options: ServeOptions,
        guard: Any,
        context: int | None,
        adapters: Sequence[str] = (),
    ) -> None:
        self.engine, self.options, self.meters = engine, options, Meters()
        self._adapters = tuple(adapters)
        self._tokenizer, self._guard, self._context = tokenizer, guard, context
        self._started = int(time.time())

    def models(self) -> list[dict[str, Any]]:
        """Return the entries of /v1/models: the model, and its adapters."""
        entry = {"object": "model", "created": self._started, "owned_by": "featherweight"}
        adapters = [{"id": name, **entry, "parent": self.options.name} for name in self._adapters]
        return [{"id": self.options.name, **entry}, *adapters]

    def adapter_of(self, name: str | None) -> str | None:
        """Return the adapter that a request names as its model; None for the model itself.

        Without adapters every name means the model, so that programs with a name of their own work.

        Raises:
            RequestError: with status 404 if adapters are here and none has this name.
        """
        if name in self._adapters:
            return name
        if self._adapters and name not in (None, "", self.options.name):
            known = ", ".join((self.options.name, *self._adapters))
            raise RequestError(
                404,
                f"serve: model={name!r:.80} is unknown; expected one of {known:.400}.",
                param="model",
                code="model_not_found",
            )
        return None

    @property
    def has_guard(self) -> bool:
        """Whether requests are judged."""
        return self._guard is not None

    def check_key(self, header: str | None) -> None:
        """Refuse who does not send the key; comparing takes the same time for every guess.

        Raises:
            RequestError: with status 401.
        """
        require_key(self.options.api_key, header)

    def job_of(self, asked: Asked) -> Job:
        """Return the job of a request.

        Raises:
            RequestError: if its turns do not fit the template, or it fills the context.
        """
        begun_ids: list[int] = []
        judged_ids: list[int] | None = None
        try:
            if isinstance(asked.prompt, str):
                prompt_ids = encode_text(self._tokenizer, asked.prompt)
                # A guard was calibrated on conversations, so it judges the text as the turn of a user.
                judged_ids = answer_ids(self._tokenizer, [{"role": "user", "content": asked.prompt}])[0]
            else:
                prompt_ids, begun_ids = answer_ids(self._tokenizer, asked.prompt)
        except ConfigError as error:
            raise RequestError(400, str(error), param="messages") from error
        room = asked.max_new_tokens
        if self._context is not None:
            reserve = 0 if self._guard is None else reserved_tokens(self._guard)
            room = min(room, self._context - len(prompt_ids) - len(begun_ids))
            if room < 1 or len(judged_ids or prompt_ids) + reserve > self._context:
                raise RequestError(
                    400,
                    f"serve: prompt={len(prompt_ids) + len(begun_ids)} tokens do not fit the context of "
                    f"{self._context} tokens; expected fewer. Shorten it.",
                    code="context_length_exceeded",
                )
        return Job(
            prompt_ids,
            begun_ids,
            judged_ids,
            max_new_tokens=room,
            sampling=asked.sampling,
            seed=asked.seed,
            deadline=time.monotonic() + self.options.timeout_s,
            adapter=self.adapter_of(asked.model),
        )

    def submit(self, job: Job) -> None:
        """Put a job into the engine.

        Raises:
            RequestError: with status 429 or 503.
        """
        try:
            self.engine.submit(job)
        except Busy as error:
            raise RequestError(429, str(error), code="rate_limit_exceeded") from error
        except Closing as error:
            raise RequestError(503, str(error)) from error

    def word_of(self, verdict: Verdict) -> str:
        """Return what a verdict means here: pass, block or shadow."""
        if not verdict.flagged:
            return "pass"
        return "shadow" if self._guard.options.on_flag == "annotate" else "block"

    @property
    def continues(self) -> bool:
        """Whether a flagged request gets the refusal that the model writes itself."""
        return self._guard is not None and self._guard.options.on_flag == "continue"

    def refusal(self, verdict: Verdict, request: Any) -> str:
        """Return the text that a flagged request gets."""
        return str(self._guard.refusal(verdict, request))

    def writer(self) -> GrowingText:
        """Return what makes text of tokens."""
        return GrowingText(self._tokenizer)

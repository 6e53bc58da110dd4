"""What a server counts, for Prometheus."""

from typing import Any

from featherweight.errors import MissingExtraError
from featherweight.guard.verdict import Verdict

_SCORES = (-8.0, -4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0, 8.0)


class Meters:
    """Counters of one server; they know no text."""

    def __init__(self) -> None:
        try:
            import prometheus_client as prometheus
        except ImportError as error:
            raise MissingExtraError(
                "serve: prometheus-client is not installed; expected the extra serve. Run pip install "
                "'featherweight[serve]'."
            ) from error
        self._prometheus = prometheus
        self._registry: Any = prometheus.CollectorRegistry()
        counter, histogram = prometheus.Counter, prometheus.Histogram
        self._requests = counter(
            "featherweight_requests", "Requests by endpoint and status", ["endpoint", "status"], registry=self._registry
        )
        self._verdicts = counter("featherweight_guard_verdicts", "Verdicts", ["verdict"], registry=self._registry)
        self._scores = histogram("featherweight_guard_score", "Scores", buckets=_SCORES, registry=self._registry)
        self._probes = counter("featherweight_guard_probe_tokens", "Tokens of probes", registry=self._registry)
        self._tokens = counter("featherweight_answer_tokens", "Tokens of answers", registry=self._registry)
        self._phases = histogram("featherweight_phase_seconds", "Time by phase", ["phase"], registry=self._registry)
        self._load = prometheus.Gauge("featherweight_requests_now", "Requests here", ["state"], registry=self._registry)

    def count_request(self, endpoint: str, status: int) -> None:
        """Count a request that was answered or refused."""
        self._requests.labels(endpoint, str(status)).inc()

    def count_verdict(self, verdict: Verdict, word: str) -> None:
        """Count a verdict: pass, block or shadow."""
        self._verdicts.labels(word).inc()
        self._probes.inc(verdict.probe_tokens)
        if verdict.error is None:
            self._scores.observe(verdict.score)

    def count_answer(self, tokens: int, seconds: dict[str, float]) -> None:
        """Count an answer and the time of its phases."""
        self._tokens.inc(tokens)
        for phase, spent in seconds.items():
            self._phases.labels(phase).observe(spent)

    def text(self, waiting: int, running: int) -> tuple[bytes, str]:
        """Return all of it, and its media type."""
        self._load.labels("waiting").set(waiting)
        self._load.labels("running").set(running)
        return self._prometheus.generate_latest(self._registry), self._prometheus.CONTENT_TYPE_LATEST

"""The metrics of `/metrics`, in Prometheus's text format."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("scen_requests", "Requests, by status.", ["status"], registry=registry)
        self.answers = Counter("scen_answers", "Answers, by an edit or by the base.", ["by"], registry=registry)
        self.tokens = Counter("scen_generated_tokens", "Generated tokens.", registry=registry)
        self.seconds = Histogram("scen_request_seconds", "Seconds until the end of an answer.", registry=registry)
        self.batch = Histogram("scen_batch_size", "Prompts per batch.", buckets=BATCH_BUCKETS, registry=registry)
        self.waiting = Gauge("scen_waiting", "Prompts in the queue.", registry=registry)
        self.edits = Gauge("scen_edits", "Active edits.", registry=registry)

    def observe_batch(self, prompts: int, edits: int) -> None:
        self.batch.observe(prompts)
        self.edits.set(edits)

    def text(self) -> bytes:
        return generate_latest(self._registry)

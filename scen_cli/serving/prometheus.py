"""What `/metrics` tells, in Prometheus's form."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

BATCHES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """One server's counts."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("scen_requests", "Requests, by status.", ["status"], registry=registry)
        self.answers = Counter("scen_answers", "Answers, by an edit or by the base.", ["by"], registry=registry)
        self.tokens = Counter("scen_generated_tokens", "Tokens generated.", registry=registry)
        self.seconds = Histogram("scen_request_seconds", "Seconds to the end of an answer.", registry=registry)
        self.batch = Histogram("scen_batch_size", "Prompts run together.", buckets=BATCHES, registry=registry)
        self.waiting = Gauge("scen_waiting", "Prompts that wait for the model.", registry=registry)
        self.edits = Gauge("scen_edits", "Edits active.", registry=registry)

    def batch_seen(self, prompts: int, edits: int) -> None:
        self.batch.observe(prompts)
        self.edits.set(edits)

    def text(self) -> bytes:
        return generate_latest(self._registry)

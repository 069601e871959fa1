"""Numbers for Prometheus, under the names of TEI."""

import os
import re

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)
TOKENS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 8192, 65_536, 524_288, 4_194_304)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The metrics of one process; where PROMETHEUS_MULTIPROC_DIR is set, `text` adds those of its sisters."""

    def __init__(self):
        self.registry = CollectorRegistry()
        self.requests = self._counter("te_request_count", "Requests to an endpoint that uses the model.", ["method"])
        self.successes = self._counter("te_request_success", "Requests that were answered.", ["method"])
        self.failures = self._counter("te_request_failure", "Requests that were not, by reason.", ["err"])
        self.duration = self._histogram("te_request_duration", "Seconds from the request to its answer.")
        self.tokenization = self._histogram("te_request_tokenization_duration", "Seconds of tokenising.")
        self.queue = self._histogram("te_request_queue_duration", "Seconds from the admission to the first row.")
        self.inference = self._histogram("te_request_inference_duration", "Seconds from the first row to the last.")
        self.length = self._histogram("te_request_input_length", "Tokens of a text.", TOKENS)
        self.batch_size = self._histogram("te_batch_next_size", "Texts of a row.", (1, 2, 4, 8, 16, 32, 64, 128, 256))
        self.batch_tokens = self._histogram("te_batch_next_tokens", "Tokens of a row.", TOKENS)
        self.waiting = self._gauge("te_queue_size", "Texts that wait.")
        self.waiting_tokens = self._gauge("lam_queue_tokens", "Tokens that were accepted and not yet read.")

    def _counter(self, name: str, about: str, labels: list[str]) -> Counter:
        return Counter(name, about, labels, registry=self.registry)

    def _histogram(self, name: str, about: str, buckets: tuple[float, ...] = SECONDS) -> Histogram:
        return Histogram(name, about, registry=self.registry, buckets=buckets)

    def _gauge(self, name: str, about: str) -> Gauge:
        return Gauge(name, about, registry=self.registry, multiprocess_mode="livesum")

    def row(self, texts: int, tokens: int) -> None:
        """One row or turn of the model."""
        self.batch_size.observe(texts)
        self.batch_tokens.observe(tokens)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        registry = self.registry
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)
        # TEI's counters have no suffix, and nobody asks when a counter began.
        text = re.sub(r"(?m)^(te_request_(?:count|success|failure))_total", r"\1", generate_latest(registry).decode())
        text = re.sub(r"(?m)^(# (?:HELP|TYPE) te_request_(?:count|success|failure))_total", r"\1", text)
        return re.sub(r"(?m)^(# (HELP|TYPE) )?\w+_created[ {].*\n", "", text).encode()

"""Prometheus metrics of the server."""

from collections.abc import Iterable
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from bintally.serving.answers import Prediction

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)


class ServerMetrics:
    """Counters and histograms in a registry of their own; thread-safe."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        seconds = partial(Histogram, buckets=SECONDS, registry=registry)
        self.requests = Counter(
            "bintally_requests", "Requests to /invocations by status", ["status"], registry=registry
        )
        latency = "Time from the head of a request to its response, of responses with status 200"
        self.latency = seconds("bintally_request_seconds", latency)
        self.images = Counter("bintally_images", "Images predicted", registry=registry)
        answers = "Answers by the most probable count, and whether it is unsure"
        self.answers = Counter("bintally_answers", answers, ["count", "unsure"], registry=registry)
        records = "Records by what is more probable: right, wrong, or unknown where the model cannot judge them"
        self.records = Counter("bintally_records", records, ["judged"], registry=registry)
        self.queue = Gauge("bintally_queue_images", "Images admitted and not yet answered", registry=registry)
        self.batches = Histogram("bintally_batch_images", "Images in a batch", buckets=IMAGES, registry=registry)
        self.decode = seconds("bintally_decode_seconds", "Time to decode an image")
        self.inference = seconds("bintally_inference_seconds", "Time to run a batch")

    def count_answers(self, predictions: Iterable[Prediction]) -> None:
        """Count what was answered, so that it shows when it changes."""
        for one in predictions:
            self.answers.labels(one["most_probable"], str(one["unsure"]).lower()).inc()
            if "record" in one:
                error = one["record"]["error_probability"]
                self.records.labels("unknown" if error is None else "wrong" if error > 0.5 else "right").inc()

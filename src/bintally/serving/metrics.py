"""Prometheus metrics of the server."""

import math
from collections.abc import Iterable, Sequence
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from bintally.scoring.calibration import Calibration
from bintally.serving.answers import Prediction

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)
RANKS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1)


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
        ranks = (
            "Share of validation's photographs nearer to training's than one answered; 0.5 on average if they are alike"
        )
        self.distance_ranks = Histogram("bintally_distance_rank", ranks, buckets=RANKS, registry=registry)
        expected = "Share of answers expected to be unsure, as in validation, and of records assumed to be wrong"
        self.expected = Gauge("bintally_expected_ratio", expected, ["of"], registry=registry)
        self.queue = Gauge("bintally_queue_images", "Images admitted and not yet answered", registry=registry)
        self.batches = Histogram("bintally_batch_images", "Images in a batch", buckets=IMAGES, registry=registry)
        self.decode = seconds("bintally_decode_seconds", "Time to decode an image")
        self.inference = seconds("bintally_inference_seconds", "Time to run a batch")

    def expect(self, calibration: Calibration) -> None:
        """Show what a model is expected to answer, and all counters of its answers from 0 on."""
        if calibration.unsure is not None:
            self.expected.labels("unsure").set(calibration.unsure)
        self.expected.labels("wrong").set(calibration.record_error_rate)
        for unsure in ("false", "true"):
            for count in calibration.counts:
                self.answers.labels(count, unsure)
        for judged in ("right", "wrong", "unknown"):
            self.records.labels(judged)

    def count_answers(self, predictions: Sequence[Prediction], distance_ranks: Iterable[float]) -> None:
        """Count what was answered, so that it shows when it changes.

        ``distance_ranks``: of each photograph; NaN by a model that does not say.
        """
        for rank in distance_ranks:
            if not math.isnan(rank):
                self.distance_ranks.observe(rank)
        for one in predictions:
            self.answers.labels(one["most_probable"], str(one["unsure"]).lower()).inc()
            if "record" in one:
                error = one["record"]["error_probability"]
                self.records.labels("unknown" if error is None else "wrong" if error > 0.5 else "right").inc()

"""Prometheus metrics of the server."""

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

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
        self.queue = Gauge("bintally_queue_images", "Images admitted and not yet answered", registry=registry)
        self.batches = Histogram("bintally_batch_images", "Images in a batch", buckets=IMAGES, registry=registry)
        self.decode = seconds("bintally_decode_seconds", "Time to decode an image")
        self.inference = seconds("bintally_inference_seconds", "Time to run a batch")

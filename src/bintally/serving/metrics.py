"""Prometheus metrics of the server."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class ServerMetrics:
    """Counters and histograms in a registry of their own; thread-safe."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "bintally_requests", "Requests to /invocations by status", ["status"], registry=self.registry
        )
        self.latency = Histogram(
            "bintally_request_seconds",
            "Time from the head of a request to its response, of responses with status 200",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.images = Counter("bintally_images", "Images predicted", registry=self.registry)
        self.queue = Gauge("bintally_queue_images", "Images admitted and not yet answered", registry=self.registry)
        self.batches = Histogram(
            "bintally_batch_images",
            "Images in a batch",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            registry=self.registry,
        )
        self.decode = Histogram(
            "bintally_decode_seconds", "Time to decode an image", buckets=SECONDS, registry=self.registry
        )
        self.inference = Histogram(
            "bintally_inference_seconds", "Time to run a batch", buckets=SECONDS, registry=self.registry
        )

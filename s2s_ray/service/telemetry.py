"""The metrics and the log of the service.

The metrics are Ray's: every node exports those of all its replicas, and `/metrics` forwards what all nodes export
(`s2s_ray.service.http.metrics`), so they are correct whichever ingress responds. Ray exports a histogram's counts
exactly but estimates its sum from the middles of the buckets, so every quantity to be averaged has a counter as well.
The log has one JSON line per request.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any, Protocol

from ray.serve.metrics import Counter, Gauge, Histogram

STAGES = ("queue", "decode", "transform", "model", "search", "encode")
_SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0]
_CONFIDENCES = [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
_ANSWERS = {True: "yes", False: "no", None: "unknown"}
_SIZES = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0]


class Recorder(Protocol):
    """The events that the ingress reports."""

    def request(self, endpoint: str, status: int, seconds: float, images: int) -> None: ...
    def stage(self, stage: str, seconds: float) -> None: ...
    def retried(self, deployment: str) -> None: ...
    def picture(self, heading_origin: str | None) -> None: ...
    def located(self, fix: dict[str, Any] | None) -> None: ...
    def changed(self, before: str) -> None: ...
    def serving(self, release: str, tiles: int) -> None: ...


class ProcessMetrics:
    """The metrics of any replica."""

    def __init__(self) -> None:
        self._start = Gauge(
            "s2s_replica_start_seconds", "Seconds from the construction of a replica to its first loaded release."
        )

    def started(self, seconds: float) -> None:
        self._start.set(seconds)


class IngressMetrics(ProcessMetrics):
    """The metrics of an ingress replica."""

    def __init__(self) -> None:
        super().__init__()
        labels: Any = ("endpoint", "status")  # Ray's annotation allows one label only
        self._requests = Counter("s2s_requests", "Completed requests.", labels)
        self._seconds = Histogram(
            "s2s_request_seconds", "Seconds from the arrival of a request to its response.", _SECONDS, ("endpoint",)
        )
        self._stages = Histogram("s2s_stage_seconds", "Seconds of one stage of one request.", _SECONDS, ("stage",))
        self._spent = Counter("s2s_stage_spent_seconds", "Total seconds spent in a stage.", ("stage",))
        self._images = Counter("s2s_images", "Images in completed requests.", ("endpoint",))
        self._retries = Counter("s2s_retries", "Calls retried after a replica was lost.", ("called",))
        self._pictures = Counter(
            "s2s_pictures", "Street views that were understood, by the origin of their heading.", ("heading",)
        )
        self._confidence = Histogram(
            "s2s_fix_confidence", "Confidence of the fixes of a calibrated release.", _CONFIDENCES
        )
        self._fixes = Counter(
            "s2s_fixes", "Fixes, by whether the picture was taken in the region of the index.", ("in_region",)
        )
        self._release = Gauge("s2s_release", "1 for the release that requests are stamped with.", ("release",))
        self._tiles = Gauge("s2s_index_tiles", "Tiles in the index of the served release.")
        self._changes = Counter("s2s_release_changes", "Changes of the served release.")

    def request(self, endpoint: str, status: int, seconds: float, images: int) -> None:
        self._requests.inc(1, {"endpoint": endpoint, "status": str(status)})
        self._seconds.observe(seconds, {"endpoint": endpoint})
        if images and status < 400:
            self._images.inc(images, {"endpoint": endpoint})

    def stage(self, stage: str, seconds: float) -> None:
        assert stage in STAGES, stage
        self._stages.observe(seconds, {"stage": stage})
        self._spent.inc(seconds, {"stage": stage})

    def retried(self, deployment: str) -> None:
        self._retries.inc(1, {"called": deployment})

    def picture(self, heading_origin: str | None) -> None:
        self._pictures.inc(1, {"heading": heading_origin or "unknown"})

    def located(self, fix: dict[str, Any] | None) -> None:
        """Count an answer by its fix in the public form; None: no tile with a position was found."""
        if fix is None:
            self._fixes.inc(1, {"in_region": "none"})
            return
        self._fixes.inc(1, {"in_region": _ANSWERS[fix["in_region"]]})
        if fix["confidence"] is not None:
            self._confidence.observe(fix["confidence"])

    def changed(self, before: str) -> None:
        self._release.set(0, {"release": before})
        self._changes.inc(1)

    def serving(self, release: str, tiles: int) -> None:
        """Set the gauges of the served release. Call it repeatedly: Ray drops a gauge that is not set for some time."""
        self._release.set(1, {"release": release})
        self._tiles.set(tiles)


class ModelMetrics(ProcessMetrics):
    """The metrics of a replica that runs a model."""

    def __init__(self) -> None:
        super().__init__()
        self._batches = Histogram("s2s_batch_size", "Images in one call of a model.", _SIZES)
        self._batched = Counter("s2s_batched_images", "Images that the model was called with.")

    def batch(self, size: int) -> None:
        self._batches.observe(size)
        self._batched.inc(size)


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def log_in_json(access: bool) -> None:
    """Log to standard error as JSON lines; Ray stores it and Serve tags it with the replica."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines())
    logger = logging.getLogger("s2s_ray.service")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logging.getLogger("s2s_ray.service.access").disabled = not access

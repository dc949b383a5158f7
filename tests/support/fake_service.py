"""Fake deployments that call functions, for the real application in process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2s_ray.geo.views import ViewGeometry
from s2s_ray.localization import Turned
from s2s_ray.service.http.exchange import Service
from s2s_ray.service.rollout.releases import ReleaseKey
from s2s_ray.service.rollout.rollout import Rollout
from s2s_ray.service.rollout.served_release import ServedRelease
from s2s_ray.service.schemas import IndexDescription, ModelInfo
from s2s_ray.service.settings import ServeArgs

HEIGHT, WIDTH, COUNT = 32, 72, 12
GEOMETRY = ViewGeometry(HEIGHT, WIDTH, default_heading=0.0)
RELEASE = ServedRelease(
    ReleaseKey("run-7-abcdef01", "checkpoint", "index"),
    GEOMETRY,
    ModelInfo(
        release="run-7-abcdef01", run="run", step=7, epoch=1, metrics={"recall_at_1": None},
        height=HEIGHT, width=WIDTH, descriptor_size=4, panorama_rows=None, default_heading=0.0,
        index=IndexDescription(kind="flat", count=COUNT, dataset="d", split="test"),
    ),
)  # fmt: skip


DESCRIPTOR = np.array([1, 0, 0, 0], np.float32)
FIX: dict[str, Any] = {
    "latitude": 50.0, "longitude": 7.0, "radius_m": 9.5, "radius_95_m": 30.0, "heading": 200.0, "heading_spread": 8.0,
    "confidence": 0.7, "in_region": True, "in_region_probability": 0.9, "calibrated": True, "confidence_m": 25.0,
    "peaks": [
        {"latitude": 50.0, "longitude": 7.0, "radius_m": 9.5, "probability": 0.8},
        {"latitude": 50.1, "longitude": 7.1, "radius_m": 12.0, "probability": 0.2},
    ],
}  # fmt: skip


class Fake:
    """A deployment handle that calls a function and records the arguments."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.calls: list[tuple[Any, ...]] = []

    async def remote(self, key: ReleaseKey, *args: Any) -> Any:
        assert key == RELEASE.key
        self.calls.append(args)
        result = self.function(*args)
        return await result if asyncio.iscoroutine(result) else (result, 0.25)

    def broadcast(self, method: str, *_args: Any) -> Any:
        class Response:
            async def results_async(self, **_options: Any) -> list[Any]:
                return [[RELEASE.id]] if method == "held" else [None]

        return Response()


class FakeRecorder:
    """A recorder that keeps the events."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, int, int]] = []
        self.stages: dict[str, float] = {}
        self.retries: list[str] = []
        self.headings: list[str | None] = []
        self.fixes: list[dict[str, Any] | None] = []

    def request(self, endpoint: str, status: int, seconds: float, images: int) -> None:
        assert 0 <= seconds < 60
        self.requests.append((endpoint, status, images))

    def stage(self, stage: str, seconds: float) -> None:
        self.stages[stage] = seconds

    def retried(self, deployment: str) -> None:
        self.retries.append(deployment)

    def picture(self, heading_origin: str | None) -> None:
        self.headings.append(heading_origin)

    def located(self, fix: dict[str, Any] | None) -> None:
        self.fixes.append(fix)

    def changed(self, before: str) -> None: ...
    def serving(self, release: str, tiles: int) -> None: ...


class Fakes:
    """All deployments: descriptors show which one made them, synthesis returns the view."""

    def __init__(self) -> None:
        self.street = Fake(lambda _view, _seen, turned: turned_descriptors() if turned else DESCRIPTOR)
        self.satellite = Fake(lambda _view: np.array([0, 1, 0, 0], np.float32))
        self.synthesis = Fake(lambda view: view.transpose(1, 2, 0))
        self.search: Any = Fake(found)
        self.search.thumbnail = Fake(lambda id: b"jpeg" if id == "tile-1" else None)
        self.search.examples = Fake(
            lambda: [{"id": "e", "latitude": 1.0, "longitude": None, "street": b"street", "tile": b"tile"}]
        )
        self.recorder = FakeRecorder()
        self.settings: dict[str, Any] = {}
        self.current: ServedRelease | None = RELEASE

    def service(self, decoders: ThreadPoolExecutor) -> Service:
        limits = {"max_upload_mb": 0.01, "max_megapixels": 0.1, "max_images": 3, "retry_after_s": 1.5}
        args = ServeArgs.model_validate({"checkpoint": "c", "index": "i", **limits, **self.settings})
        handles = {name: getattr(self, name) for name in ("street", "satellite", "synthesis", "search")}
        rollout = Rollout(args, handles, lambda _release, _before: None)
        rollout.current = self.current
        return Service(args, rollout, handles, decoders, self.recorder)


def turned_descriptors() -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return descriptors for nine headings, and the degrees that the view was turned by."""
    return np.eye(9, 4, dtype=np.float32), np.arange(9) * 40.0


def found(pictures: Sequence[Turned], k: int, _prior: Any, surface: bool) -> dict[str, Any]:
    """Return matches and a fix that name the picture's first heading; one of unknown heading has the heading 200."""
    headings = [
        (200.0, 8.0) if one.heading is None and len(one.headings) > 1 else (float(one.headings[0]), one.heading_spread)
        for one in pictures
    ]
    tree = {"matches": [match(rank) for rank in range(1, k + 1)], "fix": FIX, "headings": headings}
    points = [{"latitude": 50.0, "longitude": 7.0, "probability": 0.5}]
    return {**tree, "surface": {"points": points, "spacing_m": 8.0}} if surface else tree


def match(rank: int) -> dict[str, Any]:
    place = {"latitude": 50.0, "longitude": None if rank == 1 else 7.0}
    metres = {"easting": 1.0, "northing": 2.0, "zone": 32632}
    return {"rank": rank, "id": f"tile-{rank}", **place, **metres, "descriptor_distance": 0.1 * rank, "heading": 15.0}


def flat(height: int, width: int) -> NDArray[np.uint8]:
    """Return compressible pixels that differ along both axes, and whose left and right ends meet."""
    rows, columns = np.mgrid[:height, :width]
    waves = np.round(127 + 100 * np.sin(2 * np.pi * columns / width)).astype(int)
    return np.stack([rows % 256, waves, (rows + waves) % 256], axis=-1).astype(np.uint8)

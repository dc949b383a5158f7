"""Fake deployments that call functions, for the real application in process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2s_ray.geo.views import ViewGeometry
from s2s_ray.service.http.exchange import Service
from s2s_ray.service.rollout.releases import ReleaseKey
from s2s_ray.service.rollout.rollout import Rollout
from s2s_ray.service.rollout.served_release import ServedRelease
from s2s_ray.service.schemas import IndexDescription, ModelInfo
from s2s_ray.service.settings import ServeArgs

HEIGHT, WIDTH, COUNT = 32, 72, 12
GEOMETRY = ViewGeometry(HEIGHT, WIDTH)
RELEASE = ServedRelease(
    ReleaseKey("run-7-abcdef01", "checkpoint", "index"),
    GEOMETRY,
    ModelInfo(
        release="run-7-abcdef01", run="run", step=7, epoch=1, metrics={"recall_at_1": None},
        height=HEIGHT, width=WIDTH, descriptor_size=4, panorama_rows=None,
        index=IndexDescription(kind="flat", count=COUNT, dataset="d", split="test"),
    ),
)  # fmt: skip


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

    def request(self, endpoint: str, status: int, seconds: float, images: int) -> None:
        assert 0 <= seconds < 60
        self.requests.append((endpoint, status, images))

    def stage(self, stage: str, seconds: float) -> None:
        self.stages[stage] = seconds

    def retried(self, deployment: str) -> None:
        self.retries.append(deployment)

    def changed(self, before: str) -> None: ...
    def serving(self, release: str, tiles: int) -> None: ...


class Fakes:
    """All deployments: descriptors show which one made them, synthesis returns the view."""

    def __init__(self) -> None:
        self.street = Fake(lambda _view: np.array([1, 0, 0, 0], np.float32))
        self.satellite = Fake(lambda _view: np.array([0, 1, 0, 0], np.float32))
        self.synthesis = Fake(lambda view: view.transpose(1, 2, 0))
        self.search: Any = Fake(lambda _descriptor, k, _prior: [match(rank) for rank in range(1, k + 1)])
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


def match(rank: int) -> dict[str, Any]:
    place = {"latitude": 50.0, "longitude": None if rank == 1 else 7.0}
    metres = {"easting": 1.0, "northing": 2.0, "zone": 32632}
    return {"rank": rank, "id": f"tile-{rank}", **place, **metres, "descriptor_distance": 0.1 * rank}


def flat(height: int, width: int) -> NDArray[np.uint8]:
    """Return compressible pixels that differ along both axes."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows % 256, columns % 256, (rows + columns) % 256], axis=-1).astype(np.uint8)

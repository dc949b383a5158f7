"""The application over plain classes in this process, without Ray, for tests of HTTP alone."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI

from s2s_ray.index import ReferenceIndex
from s2s_ray.inference import Embedder, Synthesizer
from s2s_ray.localization import Calibration, locate
from s2s_ray.service.answers import found_tree
from s2s_ray.service.http.application import create_api
from s2s_ray.service.http.exchange import Service
from s2s_ray.service.rollout.rollout import Rollout
from s2s_ray.service.rollout.served_release import resolve
from s2s_ray.service.settings import ServeArgs


class Direct:
    """A deployment handle that calls a function of this process."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    async def remote(self, _key: Any, *args: Any) -> tuple[Any, float]:
        started = time.perf_counter()
        return await asyncio.to_thread(self._call, *args), time.perf_counter() - started

    def broadcast(self, _method: str, *_args: Any) -> Any:
        raise AssertionError("the release never changes")


class Silent:
    """A recorder that ignores all events."""

    def __getattr__(self, _name: str) -> Callable[..., None]:
        return lambda *_args, **_options: None


def application(args: ServeArgs) -> FastAPI:
    """Return the whole application over the release that the settings name."""
    release = resolve(args)
    embedder = Embedder.load(release.key.checkpoint_uri)
    synthesizer = Synthesizer(embedder.model, embedder.geometry)
    index = ReferenceIndex.load(release.key.index_uri)
    assert index.pictures is not None
    pictures = index.pictures
    calibration = None if release.key.calibration_uri is None else Calibration.read(release.key.calibration_uri)

    def find(pictures: Any, k: int, prior: Any, surface: bool) -> dict[str, Any]:
        return found_tree(index, locate(index, pictures, k=k, prior=prior, calibration=calibration), surface=surface)

    def street(view: Any, seen: Any, turned: bool) -> Any:
        inputs = torch.from_numpy(view)[None], None if seen is None else torch.from_numpy(seen)[None]
        if not turned:
            return embedder.embed_street(*inputs)[0]
        [descriptors], turned_by = embedder.embed_turned(*inputs)
        return descriptors, turned_by

    search: Any = Direct(find)
    search.thumbnail = Direct(lambda id: None if (row := index.row(id)) is None else pictures.thumbnail(row))
    search.examples = Direct(lambda: [example._asdict() for example in pictures.examples()])
    handles = {
        "street": Direct(street),
        "satellite": Direct(lambda view: embedder.embed_satellite(torch.from_numpy(view)[None])[0]),
        "synthesis": Direct(lambda view: synthesizer.synthesize(torch.from_numpy(view)[None])[0]),
        "search": search,
    }
    rollout = Rollout(args, handles, lambda _release, _before: None)
    rollout.current = release
    recorder: Any = Silent()
    return create_api(Service(args, rollout, handles, ThreadPoolExecutor(2), recorder))


@contextmanager
def listening(api: FastAPI) -> Iterator[str]:
    """Run the application in a thread on a free port of the loopback interface; yield its URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(api, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()

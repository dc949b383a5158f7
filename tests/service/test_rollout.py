"""Changes of the served release, over fake replicas."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import DeploymentUnavailableError

from s2s_ray.errors import NotFoundError, RegistryError, ReleaseNotLoadedError, UnreachableError
from s2s_ray.geo.views import ViewGeometry
from s2s_ray.service.replicas.replica import MAX_HELD, ReleaseSlots
from s2s_ray.service.rollout import rollout as module
from s2s_ray.service.rollout.releases import ReleaseKey
from s2s_ray.service.rollout.rollout import Rollout
from s2s_ray.service.rollout.served_release import ServedRelease
from s2s_ray.service.schemas import IndexDescription, ModelInfo
from s2s_ray.service.settings import ModelScaling, ServeArgs

ARGS = ServeArgs(registry="r", name="n", satellite=ModelScaling(min_replicas=0))
NAMES = ("street", "satellite", "synthesis", "search")


def release(id: str) -> ServedRelease:
    info = ModelInfo(
        release=id, run=None, step=None, epoch=None, metrics={}, height=1, width=1, descriptor_size=1,
        panorama_rows=None, index=IndexDescription(kind="flat", count=1, dataset="", split=None),
    )  # fmt: skip
    return ServedRelease(ReleaseKey(id, id, id), ViewGeometry(1, 1), info)


class Deployment:
    """Replicas that load the requested release, or raise."""

    def __init__(self) -> None:
        self.held: list[str] = []
        self.error_for: Callable[[str], Exception | None] = lambda _id: None

    def broadcast(self, method: str, *args: Any) -> Any:
        async def results_async(**_options: Any) -> list[Any]:
            if method == "held":
                return [list(self.held)]
            if error := self.error_for(args[0].id):
                raise error
            self.held.append(args[0].id)
            return [None]

        return type("Response", (), {"results_async": staticmethod(results_async)})()


class World:
    """A fake registry and fake deployments."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *lineage: str) -> None:
        self.lineage = list(lineage)
        self.broken: set[str | None] = set()
        self.changes: list[tuple[str, str | None]] = []
        self.deployments = {name: Deployment() for name in NAMES}
        self.rollout = Rollout(ARGS, dict(self.deployments), lambda new, old: self.changes.append((new.id, old)))
        monkeypatch.setattr(module, "candidates", lambda _args: self.lineage)
        monkeypatch.setattr(module, "resolve", lambda _args, id: self._resolve(id))
        monkeypatch.setattr(module.registry, "current", lambda *_: self.lineage[0])
        monkeypatch.setattr(module, "calibrated_since", lambda *_: False)

    def _resolve(self, id: str) -> ServedRelease:
        if id in self.broken:
            raise RegistryError(f"{id} is damaged")
        return release(id)

    def step(self) -> str | None:
        asyncio.run(self.rollout.step())
        return self.rollout.current and self.rollout.current.id


def test_the_served_release_is_reported_at_every_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray drops gauges that are not set for some time."""
    World(monkeypatch, "a")
    reported: list[str] = []
    args = ARGS.model_copy(update={"poll_s": 0.01})
    deployments = {name: Deployment() for name in NAMES}
    rollout = Rollout(args, dict(deployments), lambda _new, _old: None, lambda one: reported.append(one.id))

    async def scenario() -> None:
        watching = asyncio.create_task(rollout.watch())
        while len(reported) < 5:
            await asyncio.sleep(0.01)
        watching.cancel()

    asyncio.run(asyncio.wait_for(scenario(), 10))
    assert set(reported) == {"a"}


def test_the_next_release_is_loaded_everywhere_before_it_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, "a")
    assert world.step() == "a"
    world.lineage = ["b", "a"]
    world.deployments["search"].error_for = lambda _id: RayActorError()
    assert world.step() == "a", "one deployment has not loaded it"
    assert world.rollout.next == "b"
    assert "not loaded on all replicas" in str(world.rollout.fault)
    world.deployments["search"].error_for = lambda _id: None
    assert world.step() == "b", "temporary errors are retried at once"
    assert all("b" in deployment.held for deployment in world.deployments.values())
    assert world.changes == [("a", None), ("b", "a")]
    assert (world.rollout.next, world.rollout.fault) == (None, None)


def test_waiting_for_a_release_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(monkeypatch, "b", "a")
    monkeypatch.setattr(module.log, "propagate", True)
    unavailable = DeploymentUnavailableError("none")  # type: ignore[arg-type]
    for _ in range(2):
        world.deployments["street"].error_for = lambda _id: unavailable
        caplog.clear()
        assert [world.step() for _ in range(5)] == [None] * 5
        logged = [record.getMessage() for record in caplog.records if "not loaded everywhere" in record.message]
        assert [line.split()[1] for line in logged] == ["b", "a"]
        world.deployments["street"].error_for = lambda _id: None
        assert world.step() == "b"
        world.rollout.current = None  # again, after it was served


def test_a_damaged_release_changes_nothing_and_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, "a")
    world.step()
    world.lineage, world.broken = ["b", "a"], {"b"}
    assert world.step() == "a"
    assert world.rollout.fault == "b is damaged"
    world.broken = set()
    assert world.step() == "a", "it is not retried at once"
    assert world.rollout.fault == "b is damaged"
    world.lineage = ["a"]
    assert world.step() == "a"
    assert world.rollout.fault is None
    world.lineage = ["c", "a"]
    world.deployments["street"].error_for = lambda _id: RayTaskError(
        "call", "a traceback", ReleaseNotLoadedError("no memory")
    ).as_instanceof_cause()
    assert (world.step(), world.rollout.fault) == ("a", "no memory")


@pytest.mark.parametrize("error", [KeyError("model"), NotFoundError("index/manifest.json does not exist")])
def test_any_damage_of_the_next_release_keeps_the_served_one(
    monkeypatch: pytest.MonkeyPatch, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(monkeypatch, "a")
    world.step()
    world.lineage = ["b", "a"]
    monkeypatch.setattr(module.log, "propagate", True)

    def damaged(_args: ServeArgs, _id: str) -> ServedRelease:
        raise error

    monkeypatch.setattr(module, "resolve", damaged)
    assert [world.step() for _ in range(5)] == ["a"] * 5
    assert world.rollout.next == "b"
    assert world.rollout.fault in ("It cannot be read (KeyError).", "index/manifest.json does not exist")
    assert len(caplog.records) == 1, "it is retried after a pause"


def test_a_lost_accelerator_does_not_blame_the_release(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, "a")
    world.step()
    world.lineage = ["b", "a"]
    lost = RuntimeError("CUDA error: device-side assert triggered")
    world.deployments["street"].error_for = lambda _id: RayTaskError("call", "", lost).as_instanceof_cause()
    assert (world.step(), world.rollout.fault) == ("a", "It is not loaded on all replicas yet.")
    world.deployments["street"].error_for = lambda _id: None
    assert world.step() == "b", "it is retried at once"


@pytest.mark.parametrize("error", [UnreachableError("s3://bucket does not respond"), ValueError("a defect")])
def test_a_registry_that_is_away_is_reported_and_the_release_stays(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    world = World(monkeypatch, "a")
    world.step()

    def away(*_args: str) -> str:
        raise error

    monkeypatch.setattr(module.registry, "current", away)

    async def scenario() -> None:
        watching = asyncio.create_task(world.rollout.watch())
        while world.rollout.fault is None:
            await asyncio.sleep(0)
        watching.cancel()

    asyncio.run(asyncio.wait_for(scenario(), 10))
    assert world.rollout.fault == "The registry cannot be read."
    assert world.rollout.current is not None
    monkeypatch.setattr(module.registry, "current", lambda *_: "a")
    world.step()
    assert world.rollout.fault is None


def test_a_start_with_a_damaged_current_release_serves_the_previous_one(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, "b", "a")
    world.broken = {"b"}
    assert world.step() == "a"


def test_only_deployments_that_may_not_scale_to_zero_are_required(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, "a")
    world.deployments["satellite"].error_for = lambda _id: DeploymentUnavailableError("none")  # type: ignore[arg-type]
    assert world.step() == "a"
    assert asyncio.run(world.rollout.ready())
    assert asyncio.run(world.rollout.replicas()) == {"street": 1, "satellite": 0, "synthesis": 1, "search": 1}
    world = World(monkeypatch, "a")
    world.deployments["street"].error_for = lambda _id: DeploymentUnavailableError("none")  # type: ignore[arg-type]
    assert world.step() is None
    assert not asyncio.run(world.rollout.ready())


def key(id: str) -> ReleaseKey:
    return ReleaseKey(id, "c", "i")


def test_a_replica_loads_each_release_once_and_holds_two() -> None:
    loaded: list[str] = []

    def load(one: ReleaseKey) -> str:
        loaded.append(one.id)
        return one.id.upper()

    async def scenario() -> None:
        slots = ReleaseSlots(load, lambda one: one)
        assert await asyncio.gather(*(slots.get(key("a")) for _ in range(5))) == ["A"] * 5
        assert await asyncio.gather(slots.get(key("b")), slots.get(key("a"))) == ["B", "A"]
        assert loaded == ["a", "b"]
        await slots.get(key("a"))
        await slots.get(key("c"))
        assert (slots.held(), MAX_HELD) == (["a", "c"], 2)
        slots.release_idle(1000)
        assert slots.held() == ["a", "c"]
        slots.release_idle(0)
        assert slots.held() == ["c"], "the most recently used one stays"

    asyncio.run(scenario())


def test_a_release_that_cannot_be_loaded_is_dropped() -> None:
    errors = [ValueError("damaged")]

    def load(one: ReleaseKey) -> str:
        if errors:
            raise errors.pop()
        return one.id

    async def scenario() -> None:
        slots = ReleaseSlots(load, lambda one: one)
        with pytest.raises(ReleaseNotLoadedError, match="release a cannot be loaded: damaged"):
            await slots.get(key("a"))
        assert slots.held() == []
        assert await slots.get(key("a")) == "a"

    asyncio.run(scenario())

"""The registry under random operations with random faults, against a small model of what must hold.

`S2S_FUZZ=20000 pytest tests/registry/test_stateful.py` takes that many steps; `make test` takes a few hundred.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from s2s_ray import registry, storage
from s2s_ray.errors import BelowFloorError, DamagedError, DiskFullError, RegistryError, S2SError, StorageError
from s2s_ray.localization import Calibration
from s2s_ray.storage.store import registered, store_of
from tests.support.calibrations import calibration
from tests.support.faulty_store import Crashed, FaultyStore, Kind
from tests.support.memory_store import MemoryStore
from tests.support.small_releases import NAME, checkpoint, index, read_release

STEPS = 25
EXAMPLES = max(1, int(os.environ.get("S2S_FUZZ", "500")) // STEPS)

Held = tuple[int, str | None]
"""The step of a release's checkpoint, and the generation of its index."""
Pointer = tuple[str | None, tuple[str, ...]]
Failing = tuple[Kind | None, int]

FAULT: st.SearchStrategy[Failing] = st.one_of(
    st.just((None, 0)),
    st.tuples(st.sampled_from(["lose", "refuse", "full", "away", "crash"]), st.integers(0, 25)),
)
IDS = st.sampled_from(["r1", "r2", "r3"])
GENERATIONS = st.sampled_from(["old", "new"])
FOREIGN = st.sampled_from(
    ["notes.txt", f"{NAME}/README", f"{NAME}/releases/notes.txt", f"{NAME}/releases/drafts/model.bin", "other/x"]
)


class RegistryMachine(RuleBasedStateMachine):
    """The model: what each complete release holds, and the pointer. A call that fails changes nothing, or just that."""

    scheme: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        if self.scheme == "memory":
            self.root, below = "memory://registry", MemoryStore()
        else:
            self.root, below = str(self.folder / "registry"), store_of(str(self.folder))
        self.store = FaultyStore(below)
        patch = self.stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr("time.sleep", lambda seconds: None)
        patch.setattr("os.fsync", lambda descriptor: None)
        self.stack.enter_context(registered(self.scheme, self.store))
        self.releases: dict[str, Held] = {}
        self.pointer: Pointer = (None, ())
        self.begun: dict[str, set[Held]] = {}
        self.damaged: dict[str, bytes] = {}
        self.foreign: dict[str, bytes] = {}
        self.floor = 0.0

    def teardown(self) -> None:
        self.stack.close()

    @initialize()
    def make_sources(self) -> None:
        self.sources = f"{'memory:/' if self.scheme == 'memory' else self.folder}/sources"
        self.steps: dict[str, int] = {}
        for step in (1, 2, 3):
            uri = checkpoint(f"{self.sources}/checkpoint-{step}", step, recall=step / 10)
            self.steps[registry.fingerprint(uri)] = step
            for generation in ("old", "new"):
                index(f"{self.sources}/index-{step}-{generation}", uri, generation)

    # What is there

    def observed(self) -> tuple[dict[str, Held], Pointer]:
        """Read everything; each release is whole and not a mix."""
        found = {}
        for release in registry.list_releases(self.root, NAME):
            fingerprint, generation = read_release(release)
            found[release.id] = (self.steps[fingerprint], generation)
        lineage = registry.lineage(self.root, NAME)
        pointer: Pointer = (lineage[0], tuple(reversed(lineage[1:]))) if lineage else (None, ())
        return found, pointer

    def call(
        self, failing: Failing, operation: Callable[[], Any], after: tuple[dict[str, Held], Pointer] | type[S2SError]
    ) -> Any:
        """Make a call, and compare what is there with what should be.

        Args:
            after: the state that the call makes, or the error that it raises where nothing goes wrong.
        """
        before = (dict(self.releases), self.pointer)
        result, error = None, None
        with self.store.failing(*failing):
            try:
                result = operation()
            except (Crashed, S2SError) as raised:
                error = raised
        met, found = self.store.met, self.observed()
        if isinstance(after, type):
            assert error is not None, f"expected {after.__name__}, returned {result}"
            assert isinstance(error, after) or met, error
            assert found == before, "a call that failed changed something"
            return None
        after = ({id: held for id, held in after[0].items() if id not in self.damaged}, after[1])
        if error is None:
            assert found == after, f"{met}: the call succeeded and its change is not there"
        else:
            assert met, error
            possible = (before, after) if isinstance(error, Crashed) or met in ("lose", "away") else (before,)
            assert found in possible, f"{met}: {type(error).__name__}: {error} left {found}"
            if met == "full":
                assert isinstance(error, DiskFullError), error
            elif met in ("refuse", "away"):
                assert isinstance(error, StorageError), error
        self.releases, self.pointer = found
        return result

    # Operations

    @rule(id=IDS, step=st.integers(1, 3), generation=st.none() | GENERATIONS, failing=FAULT)
    def publish(self, id: str, step: int, generation: str | None, failing: Failing) -> None:
        uri = None if generation is None else f"{self.sources}/index-{step}-{generation}"
        held = self.releases.get(id)
        wanted: Held = (step, generation if generation is not None or held is None else held[1])
        after: Any = ({**self.releases, id: wanted}, self.pointer)
        if id in self.damaged:
            after = DamagedError
        elif held is not None and (held[0] != step or (generation and held[1] not in (None, generation))):
            after = RegistryError
        elif held is None and self.begun.get(id, set()) - {wanted}:
            return self.publish_over_a_beginning(id, step, uri, wanted)
        self.call(failing, lambda: registry.publish(self.root, NAME, self.source(step), uri, release=id), after)
        if self.store.met and id not in self.releases and not isinstance(after, type):
            self.begun.setdefault(id, set()).add(wanted)
        return None

    def publish_over_a_beginning(self, id: str, step: int, uri: str | None, wanted: Held) -> None:
        """Publish under an id that another publication has begun: it is refused, or it makes the whole change."""
        before = (dict(self.releases), self.pointer)
        try:
            registry.publish(self.root, NAME, self.source(step), uri, release=id)
        except RegistryError:
            assert self.observed() == before
            return
        self.releases[id] = wanted
        assert self.observed() == (self.releases, self.pointer)

    @rule(id=IDS, generation=GENERATIONS, failing=FAULT)
    def attach(self, id: str, generation: str, failing: Failing) -> None:
        held = self.releases.get(id)
        after: Any = RegistryError
        if id in self.damaged:
            after = DamagedError
        elif held is not None and held[1] in (None, generation):
            after = ({**self.releases, id: (held[0], generation)}, self.pointer)
        uri = f"{self.sources}/index-{held[0] if held else 1}-{generation}"
        self.call(failing, lambda: registry.attach_index(self.root, NAME, id, uri), after)

    @rule(id=IDS, error=st.sampled_from([0.1, 0.3]), failing=FAULT)
    def attach_calibration(self, id: str, error: float, failing: Failing) -> None:
        """It is attached once; another one is refused."""
        held = self.releases.get(id)
        after: Any = RegistryError
        made = calibration(registry.fingerprint(self.source(held[0] if held else 1)), calibration_error=error)
        before = self.calibration(id)
        if id in self.damaged:
            after = DamagedError
        elif held is not None and before in (None, made):
            after = (self.releases, self.pointer)
        self.call(failing, lambda: registry.attach_calibration(self.root, NAME, id, made), after)
        assert self.calibration(id) in (
            (before, made) if self.store.met and before is None else (before if isinstance(after, type) else made,)
        )

    @rule(recall=st.sampled_from([0.0, 0.15, 0.25]), failing=FAULT)
    def set_floor(self, recall: float, failing: Failing) -> None:
        after = (self.releases, self.pointer)
        self.call(failing, lambda: registry.set_floor(self.root, NAME, recall=recall), after)
        found = registry.read_floor(self.root, NAME).recall or 0.0
        assert found == recall or (self.store.met and found == self.floor)
        self.floor = found

    @rule(id=IDS, force=st.booleans(), failing=FAULT)
    def promote(self, id: str, force: bool, failing: Failing) -> None:
        held = self.releases.get(id)
        after: Any = RegistryError
        if id in self.damaged:
            after = DamagedError
        elif held is not None and held[1] is not None:
            below = held[0] / 10 < self.floor and not force
            after = BelowFloorError if below else (self.releases, self.promoted(id))
        self.call(failing, lambda: registry.promote(self.root, NAME, id, force=force), after)

    @rule(failing=FAULT)
    def promote_best(self, failing: Failing) -> None:
        usable = {id: held[0] for id, held in self.releases.items() if held[1] is not None}
        reaching = [step for step in usable.values() if step / 10 >= self.floor]
        current = self.pointer[0]
        after: Any = (self.releases, self.pointer)
        if current not in self.damaged and reaching:
            best = max(reaching)
            if current is None or usable.get(current, 0) < best:
                self.best_of(failing, [id for id, step in usable.items() if step == best])
                return
        if current in self.damaged:
            return
        self.call(failing, lambda: registry.promote_best(self.root, NAME, "recall_at_1"), after)

    def best_of(self, failing: Failing, ids: list[str]) -> None:
        """Promote the best; several may be equally good."""
        chosen = ids[0]
        if len(ids) > 1:  # the first that the registry lists
            chosen = next(release.id for release in registry.list_releases(self.root, NAME) if release.id in ids)
        after = (self.releases, self.promoted(chosen))
        self.call(failing, lambda: registry.promote_best(self.root, NAME, "recall_at_1"), after)

    @rule(failing=FAULT)
    def rollback(self, failing: Failing) -> None:
        history = self.pointer[1]
        after: Any = RegistryError
        if history:
            after = DamagedError if history[-1] in self.damaged else (self.releases, (history[-1], history[:-1]))
        self.call(failing, lambda: registry.rollback(self.root, NAME), after)

    @rule(id=st.none() | IDS, failing=FAULT)
    def resolve(self, id: str | None, failing: Failing) -> None:
        wanted = self.pointer[0] if id is None else id
        after: Any = (self.releases, self.pointer)
        if wanted in self.damaged:
            after = DamagedError
        elif wanted not in self.releases:
            after = RegistryError
        found = self.call(failing, lambda: registry.resolve(self.root, NAME, id), after)
        assert found is None or found.id == wanted

    @rule(failing=FAULT)
    def list_releases(self, failing: Failing) -> None:
        found = self.call(failing, lambda: registry.list_releases(self.root, NAME), (self.releases, self.pointer))
        assert found is None or {release.id for release in found} == self.releases.keys()

    # What others do

    @rule(path=FOREIGN, content=st.binary(max_size=4))
    def write_a_foreign_file(self, path: str, content: bytes) -> None:
        storage.write_bytes(f"{self.root}/{path}", content)
        self.foreign[path] = content

    @precondition(lambda self: self.foreign)
    @rule(data=st.data())
    def delete_a_foreign_file(self, data: st.DataObject) -> None:
        path = data.draw(st.sampled_from(sorted(self.foreign)))
        storage.delete(f"{self.root}/{path}")
        del self.foreign[path]

    @precondition(lambda self: self.releases)
    @rule(data=st.data())
    def damage_a_release(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted(self.releases)))
        uri = self.record(id)
        self.damaged[id] = storage.read_bytes(uri)
        storage.write_bytes(uri, self.damaged[id][: len(self.damaged[id]) // 2])
        del self.releases[id]

    @precondition(lambda self: self.damaged)
    @rule(data=st.data())
    def restore_a_release(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted(self.damaged)))
        storage.write_bytes(self.record(id), self.damaged.pop(id))
        self.releases = self.observed()[0]
        assert id in self.releases

    @invariant()
    def foreign_files_are_left_alone(self) -> None:
        for path, content in self.foreign.items():
            assert storage.read_bytes(f"{self.root}/{path}") == content

    def promoted(self, id: str) -> Pointer:
        current, history = self.pointer
        return self.pointer if id == current else (id, (*history, *([current] if current else [])))

    def calibration(self, id: str) -> Calibration | None:
        if id not in self.releases:
            return None
        return registry.read_calibration(registry.resolve(self.root, NAME, id))

    def source(self, step: int) -> str:
        return f"{self.sources}/checkpoint-{step}"

    def record(self, id: str) -> str:
        return f"{self.root}/{NAME}/releases/{id}/{registry.RELEASE_FILE}"


class OnMemory(RegistryMachine):
    scheme = "memory"


class OnDisk(RegistryMachine):
    scheme = "file"


SETTINGS = settings(max_examples=EXAMPLES, stateful_step_count=STEPS)
OnMemory.TestCase.settings = OnDisk.TestCase.settings = SETTINGS
TestOnMemory = pytest.mark.slow(OnMemory.TestCase)
TestOnDisk = pytest.mark.slow(OnDisk.TestCase)

"""What is at a storage root: runs, sweeps and releases with how far they are, read without changing anything.

ROOT/.../config.yaml, checkpoints/    a run
ROOT/.../sweep.yaml                   a sweep; the runs of its trials are not listed
ROOT/.../releases/                    a name of a registry
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import yaml

from s2s_ray import registry, storage
from s2s_ray.config import Config
from s2s_ray.errors import NotFoundError
from s2s_ray.training.checkpoints import CheckpointStore
from s2s_ray.training.logbook import DIVERGED_FILE
from s2s_ray.training.run import CONFIG_FILE, load_run_config

_DEEPEST = 3  # levels below the root: ROOT/runs/NAME and one more
_OF_A_RUN = {"checkpoints", "history.json", "ray", "tensorboard", DIVERGED_FILE}  # one is there from the start
_LOSSES = ("d_loss", "r_loss", "gan", "ret_weighted", "l1_weighted", "g_loss")


@dataclass(frozen=True)
class RunStatus:
    """A run as far as its files say; times are seconds since 1970, recall a fraction."""

    name: str
    uri: str
    epochs: int
    epochs_done: int
    step: int
    recall: float | None
    best_recall: float | None
    losses: dict[str, float]
    pairs_per_second: float | None
    checkpoints: int
    checkpoint_step: int | None
    checkpoint_time: float | None
    diverged: str | None

    @property
    def complete(self) -> bool:
        return self.epochs_done >= self.epochs


@dataclass(frozen=True)
class SweepStatus:
    """A sweep as its study has it."""

    name: str
    uri: str
    asked: int
    states: dict[str, int]
    best_recall: float | None
    best_trial: int | None


@dataclass(frozen=True)
class ReleaseStatus:
    """A name of a registry."""

    name: str
    uri: str
    releases: int
    current: str | None
    promoted: float | None


@dataclass(frozen=True)
class Inventory:
    """What was found at a root; `faults` says what could not be read."""

    root: str
    runs: list[RunStatus] = field(default_factory=list)
    sweeps: list[SweepStatus] = field(default_factory=list)
    names: list[ReleaseStatus] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def take_inventory(root: str) -> Inventory:
    """Look at everything below a root. Raises StorageError where the root itself cannot be read."""
    found = Inventory(root)
    if not storage.exists(root):
        raise NotFoundError(f"{root} does not exist: give the place that holds runs, sweeps or a registry")
    for kind, uri in _things(root, _DEEPEST):
        try:
            if kind == "run":
                found.runs.append(run_status(uri))
            elif kind == "sweep":
                found.sweeps.append(sweep_status(uri))
            else:
                found.names.append(release_status(uri))
        except (ValueError, KeyError, TypeError, yaml.YAMLError) as error:  # damaged, or written meanwhile
            found.faults.append(f"{uri}: {error}")
    return found


def _things(uri: str, levels: int) -> Iterator[tuple[str, str]]:
    """Runs, sweeps and names below a directory, in the order of their names."""
    names = set(storage.list_names(uri))
    if "sweep.yaml" in names:
        yield "sweep", uri
    elif CONFIG_FILE in names and names & _OF_A_RUN:
        yield "run", uri
    elif "releases" in names:
        yield "name", uri
    elif "dataset.json" not in names and levels:
        for name in storage.list_folders(uri):
            if not name.startswith("."):
                yield from _things(storage.join(uri, name), levels - 1)


def run_status(uri: str) -> RunStatus:
    """One run. Raises StorageError or ConfigError for a damaged one."""
    config = load_run_config(uri)
    history = _optional(storage.join(uri, "history.json"), storage.read_json) or []
    store = CheckpointStore(storage.join(uri, "checkpoints"))
    steps = store.steps()
    newest = history[-1] if history else {}
    recalls = [entry["recall_at_1"] for entry in history if entry.get("recall_at_1") is not None]
    diverged = _optional(storage.join(uri, DIVERGED_FILE), storage.read_json)
    written = _optional(storage.join(store.uri(steps[-1]), storage.MANIFEST), storage.modified) if steps else None
    return RunStatus(
        name=storage.name(uri),
        uri=uri,
        epochs=config.train.epochs,
        epochs_done=len(history),
        step=max([newest.get("step", 0), *steps[-1:]]),
        recall=recalls[-1] if recalls else None,
        best_recall=max(recalls, default=None),
        losses={name: float(newest[name]) for name in _LOSSES if name in newest},
        pairs_per_second=newest.get("pairs_per_second"),
        checkpoints=len(steps),
        checkpoint_step=steps[-1] if steps else None,
        checkpoint_time=written,
        diverged=diverged["reason"] if diverged else None,
    )


def sweep_status(uri: str) -> SweepStatus:
    """One sweep. Raises StorageError or ConfigError for a damaged one."""
    from s2s_ray.sweep.study import RECALL, read_records

    tree = yaml.safe_load(storage.read_bytes(storage.join(uri, "sweep.yaml")))
    config = Config.from_tree(tree["config"]).tune
    records = read_records(config, uri)
    states = {state: sum(record.state == state for record in records) for state in ("complete", "failed", "running")}
    complete = [record for record in records if record.state == "complete"]
    best = max(complete, key=lambda record: record.values[RECALL], default=None)
    return SweepStatus(
        name=storage.name(uri),
        uri=uri,
        asked=config.trials,
        states=states,
        best_recall=best.values[RECALL] if best else None,
        best_trial=best.number if best else None,
    )


def release_status(uri: str) -> ReleaseStatus:
    """One name of a registry. Raises RegistryError or StorageError for a damaged one."""
    root, name = storage.parent(uri), storage.name(uri)
    current = registry.current(root, name)
    pointer = storage.join(uri, registry.POINTER_FILE)
    promoted = _optional(pointer, storage.modified) if current else None
    return ReleaseStatus(name, uri, len(registry.list_releases(root, name)), current, promoted)


def _optional(uri: str, read: Callable[[str], Any]) -> Any:
    """What is at a URI, None where nothing is."""
    try:
        return read(uri)
    except NotFoundError:
        return None

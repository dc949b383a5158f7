"""The inventory of a storage root: its runs, sweeps and releases with their state, read without changing anything.

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
from s2s_ray.config.protocol import RECALL
from s2s_ray.errors import NotFoundError, S2SError
from s2s_ray.storage.store import store_of
from s2s_ray.training.checkpoint_store import CheckpointStore
from s2s_ray.training.history import read_history
from s2s_ray.training.run import CONFIG_FILE, DIVERGED_FILE, load_run_config
from s2s_ray.uri import Uri

_MAX_DEPTH = 3  # levels below the root: ROOT/runs/NAME and one more
_RUN_FILES = {"checkpoints", "history.json", "ray", "tensorboard", DIVERGED_FILE}  # a run has one of these at once
_SWEEP_FILE = "sweep.yaml"
_LOSSES = ("d_loss", "r_loss", "gan", "ret_weighted", "l1_weighted", "g_loss")


@dataclass(frozen=True)
class RunStatus:
    """The state of a run according to its files; times are seconds since 1970, recall is a fraction."""

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
        """True if all epochs are completed."""
        return self.epochs_done >= self.epochs


@dataclass(frozen=True)
class SweepStatus:
    """The state of a sweep according to its study."""

    name: str
    uri: str
    requested: int
    """Trials to run."""
    states: dict[str, int]
    best_recall: float | None
    """Of the best trial; None if another metric is the objective."""
    best_trial: int | None
    metric: str = RECALL
    """The objective."""
    best_value: float | None = None
    """Of the best trial."""


@dataclass(frozen=True)
class ReleaseStatus:
    """The state of a name of a registry."""

    name: str
    uri: str
    releases: int
    current: str | None
    promoted: float | None


@dataclass(frozen=True)
class Inventory:
    """Everything found at a root; `faults` names what could not be read."""

    root: str
    runs: list[RunStatus] = field(default_factory=list)
    sweeps: list[SweepStatus] = field(default_factory=list)
    names: list[ReleaseStatus] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def path(self, uri: str) -> str:
        """Return the path of something below the root, which tells apart two runs of one name; "." for the root."""
        return uri.removeprefix(self.root.rstrip("/")).strip("/") or "."

    def as_dict(self) -> dict[str, Any]:
        """Return the inventory as a tree for JSON. A sweep has `asked` as well, the earlier name of `requested`."""
        tree = asdict(self)
        for sweep in tree["sweeps"]:
            sweep["asked"] = sweep["requested"]
        return tree


def take_inventory(root: str) -> Inventory:
    """Return the state of everything below a root.

    Raises:
        NotFoundError: the root does not exist, or is a file.
        StorageError: the root cannot be read.
    """
    inventory = Inventory(root)
    found = store_of(root).head(Uri(root))
    if found is None or found.kind != "folder":
        what = "does not exist" if found is None else "is a file"
        raise NotFoundError(f"{root} {what}: give a folder that holds runs, sweeps or a registry")
    for kind, uri in _entries(root, _MAX_DEPTH):
        try:
            if kind == "run":
                inventory.runs.append(run_status(uri))
            elif kind == "sweep":
                inventory.sweeps.append(sweep_status(uri))
            else:
                inventory.names.append(release_status(uri))
        except (S2SError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:  # damaged, or just being written
            inventory.faults.append(str(error) if uri in str(error) else f"{uri}: {error}")
        except ModuleNotFoundError as error:
            inventory.faults.append(f"{uri}: reading a {kind} needs {error.name}: pip install 's2s-ray[tune]'")
    return inventory


def _entries(uri: str, levels: int) -> Iterator[tuple[str, str]]:
    """Yield the kind and URI of runs, sweeps and names below a directory, in the order of their names."""
    names = set(storage.list_names(uri))
    if _SWEEP_FILE in names:
        yield "sweep", uri
    elif CONFIG_FILE in names and names & _RUN_FILES:
        yield "run", uri
    elif "releases" in names:
        yield "name", uri
    elif "dataset.json" not in names and levels:
        for name in storage.list_folders(uri):
            if not name.startswith("."):
                yield from _entries(storage.join(uri, name), levels - 1)


def run_status(uri: str) -> RunStatus:
    """Return the state of one run. Raises S2SError if it is damaged."""
    config = load_run_config(uri)
    history = read_history(uri)
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
    """Return the state of one sweep. Raises S2SError if it is damaged."""
    from s2s_ray.sweep.origin import SweepOrigin
    from s2s_ray.sweep.study import best_of, read_records

    origin = SweepOrigin.at(uri)
    config = origin.configuration(uri).tune
    records = read_records(config, uri, origin.study(config))
    states = {state: sum(record.state == state for record in records) for state in ("complete", "failed", "running")}
    best = best_of(records, config.metric)
    return SweepStatus(
        name=storage.name(uri),
        uri=uri,
        requested=config.trials,
        states=states,
        best_recall=best.values.get(RECALL) if best else None,
        best_trial=best.number if best else None,
        metric=config.metric,
        best_value=best.values[config.metric] if best else None,
    )


def release_status(uri: str) -> ReleaseStatus:
    """Return the state of one name of a registry. Raises S2SError if it is damaged."""
    root, name = storage.parent(uri), storage.name(uri)
    current = registry.current(root, name)
    pointer = storage.join(uri, registry.POINTER_FILE)
    promoted = _optional(pointer, storage.modified) if current else None
    return ReleaseStatus(name, uri, len(registry.list_releases(root, name)), current, promoted)


def _optional(uri: str, read: Callable[[str], Any]) -> Any:
    """Return the content of a URI, or None if it does not exist."""
    try:
        return read(uri)
    except NotFoundError:
        return None

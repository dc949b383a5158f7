"""A place for the results of many trials: begun there, or continued with settings that change no result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import yaml

from s2s_ray import storage
from s2s_ray.config import Config
from s2s_ray.data.description import read_manifest
from s2s_ray.errors import S2SError

# What may differ when trials are continued: it changes no trial's result.
TRAIN_FREE = (
    "name", "storage", "workers", "min_workers", "resize_every_s", "use_gpu", "resources_per_worker", "threads",
    "micro_batch", "loader_workers", "log_every_s", "keep_checkpoints", "max_failures", "checkpoint_every", "trackers",
)  # fmt: skip
DATA_FREE = ("uri", "cache_dir", "cache_gb")


def claim(
    config: Config,
    root: str,
    *,
    kind: str,
    section: str,
    file: str,
    compared: Sequence[str],
    free: Mapping[str, Sequence[str]],
    fault: type[S2SError],
) -> None:
    """Begin trials at their place, or make sure that they are those that were begun there.

    Args:
        kind, section: what they are together, and the section of the configuration that has its name.
        file: in `root`, the configuration that they were begun with.
        compared: sections in which only the `free` keys may differ.

    Raises:
        fault: something else is there, or it was begun with other settings or on another data set.
    """
    name = getattr(config, section).name
    uri = storage.join(root, file)
    digest = read_manifest(config.data.uri).digest
    if not storage.exists(uri):
        there = storage.list_names(root)
        if there:
            raise fault(f"{root} holds {', '.join(there[:3])} and no {kind}: choose another {section}.name")
        begun = {"dataset": digest, "config": config.model_dump(mode="json")}
        storage.write_bytes(uri, yaml.safe_dump(begun, sort_keys=False).encode())
        return
    tree = yaml.safe_load(storage.read_bytes(uri))
    before, now = Config.from_tree(tree["config"]).model_dump(mode="json"), config.model_dump(mode="json")
    for part in compared:
        for key, value in now[part].items():
            if key not in free.get(part, ()) and before[part][key] != value:
                raise fault(
                    f"{kind} {name!r} at {root} was begun with {part}.{key}={before[part][key]!r}, "
                    f"now it is {value!r}: keep it, or choose another {section}.name"
                )
    if tree["dataset"] != digest:
        raise fault(
            f"{kind} {name!r} at {root} was begun on another data set ({before['data']['uri']}) than "
            f"data.uri={config.data.uri!r}: choose another {section}.name"
        )

"""The folder of a sweep or an ablation study: started there, or continued with settings that change no result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self, TypeVar
from uuid import uuid4

import yaml

from s2s_ray import storage
from s2s_ray.config import Config, notation
from s2s_ray.storage import conditional
from s2s_ray.storage.documents import Document

# These may differ when trials are continued, because they change no trial's result.
TRAIN_FREE = (
    "name", "storage", "workers", "min_workers", "resize_every_s", "use_gpu", "resources_per_worker", "threads",
    "micro_batch", "loader_workers", "log_every_s", "keep_checkpoints", "max_failures", "checkpoint_every", "trackers",
)  # fmt: skip
DATA_FREE = ("uri", "cache_dir", "cache_gb")


class Origin(Document):
    """The data set and the configuration with which trials were started, in a YAML file beside them.

    A subclass says what the trials belong to and which settings they may be continued with.
    """

    NOUN: ClassVar[str] = "record of started trials"

    FILE: ClassVar[str]
    """Name of the file."""
    KIND: ClassVar[str]
    """What the trials belong to, for messages."""
    SECTION: ClassVar[str]
    """The section of the configuration with its name and storage."""
    COMPARED: ClassVar[Sequence[str]]
    """Sections that must stay the same."""
    FREE: ClassVar[Mapping[str, Sequence[str]]]
    """Keys of these sections that may change."""

    nonce: str = ""
    """Random name of this start, different for every folder; empty for one that an earlier version started."""
    dataset: str
    """Digest of the data set."""
    config: dict[str, Any]

    @classmethod
    def at(cls, root: str) -> Self:
        """Read the file of the trials at `root`.

        Raises:
            StateError: `ERROR`, if a newer version that this one cannot read wrote it.
            DamagedError: it is not such a file.
            StorageError: it cannot be read.
        """
        uri = storage.join(root, cls.FILE)
        return cls.from_yaml(storage.read_bytes(uri), uri)

    @classmethod
    def from_yaml(cls, content: bytes, uri: str) -> Self:
        """Validate the content of the file. Raises the errors of `at`."""
        return cls.parse(notation.parse_stored(content, uri), uri)

    def configuration(self, root: str) -> Config:
        """Return the configuration; keys of a newer version are logged and left out. Raises ConfigError."""
        return Config.from_stored(self.config, storage.join(root, self.FILE))

    def to_yaml(self) -> bytes:
        """Return the content of the file."""
        return yaml.safe_dump(self.tree(), sort_keys=False).encode()


OriginT = TypeVar("OriginT", bound=Origin)


def claim(config: Config, root: str, origin: type[OriginT]) -> OriginT:
    """Start trials at `root`, or make sure that they are those that were started there.

    Of several processes that start trials with different settings at the same moment one does, and the others are
    refused.

    Returns:
        The start of the trials.

    Raises:
        StateError: `origin.ERROR`, if the folder holds something else, or the trials were started with other settings
            or on another data set.
        DamagedError: the file of an earlier start cannot be read.
        StorageError: the folder cannot be read or written.
    """
    from s2s_ray.data.description import read_dataset_info  # imports PyTorch, which `s2s status` does without

    digest = read_dataset_info(config.data.uri).digest
    uri = storage.join(root, origin.FILE)
    present = storage.list_names(root)  # before the file is read: another start writes the file before all others
    content, _ = conditional.read(uri)
    if content is None:
        if present:
            raise origin.ERROR(
                f"{root} holds {', '.join(present[:3])} and no {origin.KIND}: choose another {origin.SECTION}.name"
            )
        mine = origin(nonce=uuid4().hex, dataset=digest, config=config.model_dump(mode="json"))
        content = conditional.write_once(uri, mine.to_yaml())
    stored = origin.from_yaml(content, uri)
    _compare(stored, config, root, digest)
    return stored


def _compare(stored: Origin, config: Config, root: str, digest: str) -> None:
    """Refuse settings or a data set that the trials were not started with."""
    kind, section, fault = stored.KIND, stored.SECTION, stored.ERROR
    name = getattr(config, section).name
    # Earlier versions stored some paths as typed, relative to the directory of the start.
    before, now = stored.configuration(root).located().model_dump(mode="json"), config.model_dump(mode="json")
    for part in stored.COMPARED:
        for key, value in now[part].items():
            if key not in stored.FREE.get(part, ()) and before[part][key] != value:
                raise fault(
                    f"{kind} {name!r} at {root} was started with {part}.{key}={before[part][key]!r}, "
                    f"now it is {value!r}: keep it, or choose another {section}.name"
                )
    if stored.dataset != digest:
        raise fault(
            f"{kind} {name!r} at {root} was started on another data set ({before['data']['uri']}) than "
            f"data.uri={config.data.uri!r}: choose another {section}.name"
        )

"""`index.json`: the search structure of a reference index and the checkpoint and tiles it was built from.

It is read without FAISS and without PyTorch, so that a registry can check an index that it does not search.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from s2s_ray import storage
from s2s_ray.errors import ReferenceIndexError
from s2s_ray.storage.documents import Document

INFO_FILE = "index.json"

Kind = Literal["flat", "compressed"]
"""Exact search, or compressed search for large galleries (`s2s_ray.index.vectors`)."""


class IndexInfo(Document):
    """Content of `index.json`."""

    NOUN: ClassVar[str] = "description of an index"

    ERROR: ClassVar[type[ReferenceIndexError]] = ReferenceIndexError

    kind: Kind = "flat"
    dimension: int
    count: int
    checkpoint: str
    """Fingerprint (SHA-256 of the weights) of the checkpoint that made the descriptors."""
    dataset: str
    """URI of the data set or of the manifest."""
    dataset_digest: str
    split: str | None = None

    def require(self, dimension: int, checkpoint: str | None = None) -> None:
        """Check that a model made these descriptors.

        Args:
            dimension: descriptor size of the model.
            checkpoint: fingerprint of the model's checkpoint, if it has one.

        Raises:
            ReferenceIndexError: the size or the checkpoint differs.
        """
        if dimension != self.dimension:
            raise ReferenceIndexError(
                f"the index holds descriptors of {self.dimension} numbers, the model makes {dimension}: "
                "build the index with this model's checkpoint"
            )
        if checkpoint is not None and checkpoint != self.checkpoint:
            raise ReferenceIndexError(
                f"the index was built with checkpoint {self.checkpoint[:8]}, the model is checkpoint "
                f"{checkpoint[:8]}: build the index with this model's checkpoint"
            )


def read_info(uri: str) -> IndexInfo:
    """Read `index.json` of a published index, without its vectors.

    Raises:
        ReferenceIndexError: no complete index at the URI, or one of a newer version.
        StorageError: the file cannot be read or is damaged.
    """
    if not storage.is_complete(uri):
        raise ReferenceIndexError(f"{uri} holds no complete index: build one with `s2s build-index`")
    return IndexInfo.from_bytes(storage.read_published(uri, INFO_FILE), storage.join(uri, INFO_FILE))

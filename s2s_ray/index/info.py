"""`index.json`: the search structure of a reference index and the checkpoint and tiles it was built from.

It is read without FAISS and without PyTorch, so that a registry can check an index that it does not search.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from s2s_ray import storage
from s2s_ray.errors import ReferenceIndexError
from s2s_ray.storage.documents import Document, Tree

if TYPE_CHECKING:
    from s2s_ray.geo.region import Region

INFO_FILE = "index.json"

Kind = Literal["flat", "compressed"]
"""Exact search, or compressed search for large galleries (`s2s_ray.index.vectors`)."""
_SAME = 1e-6  # relative difference of sizes that are equal


class RegionInfo(BaseModel):
    """The region of an index whose tiles lie on the lattice of one spacing (`s2s_ray.geo.lattice`)."""

    model_config = ConfigDict(frozen=True)

    every_m: float
    """Metres between neighbouring tiles."""
    tile_m: float
    """Side of a tile in metres."""
    bounds: tuple[float, float, float, float]
    """West, south, east and north in degrees; west is above east if the region crosses the date line."""
    polygon: dict[str, Any]
    """GeoJSON geometry of the region. Tiles that the imagery lacks are not in the index."""

    @classmethod
    def of(cls, region: Region, every_m: float, tile_m: float) -> RegionInfo:
        """Describe a region and its tiles."""
        box = region.bounds
        bounds = (box.west, box.south, box.east, box.north)
        return cls(every_m=every_m, tile_m=tile_m, bounds=bounds, polygon=region.geojson())

    @property
    def region(self) -> Region:
        """The region itself."""
        from s2s_ray.geo.region import Region  # needs NumPy, which reading an index does not

        return Region.of_geojson(self.polygon)

    def joined(self, other: RegionInfo) -> RegionInfo:
        """Return the description of this and another region together.

        Raises:
            ReferenceIndexError: their tiles differ in spacing or size.
        """
        for name, noun in (("every_m", "every"), ("tile_m", "of")):
            old, new = getattr(self, name), getattr(other, name)
            if abs(new / old - 1) > _SAME:
                raise ReferenceIndexError(
                    f"the index to extend has a tile {noun} {old:g} m, the region to add {noun} {new:g} m: "
                    "use the same, or build a separate index"
                )
        return RegionInfo.of(self.region.joined(other.region), self.every_m, self.tile_m)


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
    """URI of the data set, of the manifest or of the imagery."""
    dataset_digest: str
    split: str | None = None
    region: RegionInfo | None = None
    """The region that the tiles fill; None if they are those of a data set or a manifest."""

    def tree(self) -> Tree:
        """Return the tree of the file, without a region if there is none: as earlier versions wrote it."""
        tree = super().tree()
        if self.region is None:
            del tree["region"]
        return tree

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

    def with_region(self, more: RegionInfo | None) -> RegionInfo | None:
        """Return the region of this index after tiles have been added: those of a region, or others.

        Raises:
            ReferenceIndexError: a region is added to an index of other tiles or of another spacing, or other tiles to
                that of a region.
        """
        if more is None and self.region is not None:
            raise ReferenceIndexError(
                f"the index to extend holds the tiles of a region, {self.region.every_m:g} m apart, and those to add "
                "are of a data set or a manifest: build a separate index"
            )
        if more is None:
            return None
        if self.region is None:
            raise ReferenceIndexError(
                f"the index to extend holds the tiles of {self.dataset}, not those of a region: build a separate index"
            )
        return self.region.joined(more)


def read_info(uri: str) -> IndexInfo:
    """Read `index.json` of a published index, without its vectors.

    Raises:
        ReferenceIndexError: no complete index at the URI, or one of a newer version.
        StorageError: the file cannot be read or is damaged.
    """
    if not storage.is_complete(uri):
        raise ReferenceIndexError(f"{uri} holds no complete index: build one with `s2s build-index`")
    return IndexInfo.from_bytes(storage.read_published(uri, INFO_FILE), storage.join(uri, INFO_FILE))

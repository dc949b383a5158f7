"""A prepared data set as a PyTorch data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from s2s_ray import storage
from s2s_ray.config import AugmentationConfig, DataConfig
from s2s_ray.data.augmentation import Draws, draw
from s2s_ray.data.batch import Batch, Sample, collate
from s2s_ray.data.description import read_dataset_info
from s2s_ray.data.schema import Split, TileSize
from s2s_ray.errors import ConfigError, DamagedError, DatasetError, UnreadableImageError
from s2s_ray.geo.images import Pixels, decode
from s2s_ray.geo.polar import flip_pair
from s2s_ray.storage.cache import ShardCache
from s2s_ray.uri import Uri


class PairDataset(Dataset[Sample]):
    """One split of a prepared data set; `open` takes its settings from a configuration.

    An index gives the pair as it is; a tuple (epoch, index) gives it as that epoch of training sees it: both images
    mirrored with probability `flip` and turned as `augmentation` says, with what a batch needs for its other
    variations. All is drawn from (seed, epoch, id) alone, so that neither the order nor the number of processes changes
    it. Opening reads `dataset.json` and the records; a shard is fetched with its first pair.
    Instances are pickled into loader processes, which open the shards themselves.

    Args:
        uri: the data set.
        split: train, val or test.
        cache_dir: node-local folder for the shards of a remote data set; by default one below the temporary directory.
        cache_bytes: maximum size of that folder.
        window: shards whose pairs are shuffled together; the cache must hold two windows.
        flip: probability that a pair of an epoch is mirrored.
        seed: seed of the augmentation.
        augmentation: further variations of an epoch's pairs; None: none.

    Attributes:
        info: the data set's `DatasetInfo`.
        ids: ids of the pairs, by index.
        shard_sizes: pairs in each shard, for `epoch_order`.
        positions: easting and northing in metres, N 2 float64; NaN where unknown.
        zones: EPSG codes of their UTM zones, N int64; 0 where unknown.
        latlon: latitude and longitude in degrees, N 2 float64; NaN where unknown.
        oriented: whether the heading of each panorama is known, N bool; if not, its middle column is taken for north.
        places: name of each pair's place, None where the source names none.

    Raises:
        DatasetError: no complete data set, or no such split.
        StorageError: its files cannot be read or are damaged.
        ConfigError: a cache smaller than two windows, or references farther off their centres than the margin.
    """

    def __init__(
        self,
        uri: str,
        split: Split,
        *,
        cache_dir: str | Path | None = None,
        cache_bytes: int = 50_000_000_000,
        window: int = 8,
        flip: float = 0.0,
        seed: int = 0,
        augmentation: AugmentationConfig | None = None,
    ) -> None:
        self.uri = uri
        self.info = read_dataset_info(uri)
        self.height, self.width = self.info.geometry.height, self.info.geometry.width
        self.flip, self.seed = flip, seed
        self.augmentation = augmentation if augmentation is not None and augmentation.active else None
        self._require_margin()
        info = self.info.split(split)
        self._shards = info.shards
        self.shard_sizes = [shard.count for shard in info.shards]
        self._ends = np.cumsum(self.shard_sizes)
        folder = None if cache_dir is None else Path(cache_dir)
        self._cache = ShardCache(uri, info.shards, folder=folder, max_bytes=cache_bytes, window=window)
        records = _read_records(storage.join(uri, info.records.name), info.records.sha256)
        self.ids: list[str] = records.column("id").to_pylist()
        if len(self.ids) != info.count or sum(self.shard_sizes) != info.count:
            raise DatasetError(
                f"{uri}: the {split} split lists {info.count} pairs, but its files hold a different number"
            )
        self.positions = _pairs(records, "easting", "northing")
        self.latlon = _pairs(records, "latitude", "longitude")
        names = records.column_names
        origins = records.column("heading_origin").to_pylist() if "heading_origin" in names else []
        self.oriented = np.array([origin != "unknown" for origin in origins] or [True] * info.count, np.bool_)
        self.places: list[str | None] = records.column("place").to_pylist() if "place" in names else [None] * info.count
        self.zones: NDArray[np.int64] = records.column("zone").fill_null(0).to_numpy().astype(np.int64)

    @classmethod
    def open(
        cls,
        config: DataConfig,
        split: Split,
        *,
        flip: float = 0.0,
        seed: int = 0,
        augmentation: AugmentationConfig | None = None,
    ) -> Self:
        """Open a split as the configuration's section `data` says: place, cache and window."""
        return cls(
            Uri(config.uri).absolute,
            split,
            cache_dir=None if config.cache_dir is None else Uri(config.cache_dir).path,
            cache_bytes=int(config.cache_gb * 1e9),
            window=config.window,
            flip=flip,
            seed=seed,
            augmentation=augmentation,
        )

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        epoch, index = key if isinstance(key, tuple) else (None, key)
        polar, street, seen = self._planes("polar", index), self._planes("street", index), self._mask(index)
        if epoch is None:
            return Sample(polar, street, index, seen)
        id, config = self.ids[index], self.augmentation or AugmentationConfig()
        drawn = draw(config, self.flip, self.width, self.seed, epoch, id)
        if drawn.mirrored:
            polar, street = flip_pair(polar, street)
            seen = None if seen is None else seen.flip(-1)
        if drawn.turned:
            polar, street = polar.roll(drawn.turned, -1), street.roll(drawn.turned, -1)
            seen = None if seen is None else seen.roll(drawn.turned, -1)
        tile = torch.from_numpy(self.wide_tile(index)).permute(2, 0, 1) if config.offcentre_m else None
        return Sample(polar, street, index, seen, tile, drawn if config.active else None)

    def tile(self, index: int) -> Pixels | None:
        """Return the raw satellite tile, S S 3; None if the data set was prepared without `keep_tiles`."""
        if not self.info.keep_tiles:
            return None
        return self.tile_around(index, 0.0, 0.0) if self.info.margin_px else self._decode("satellite", index)

    def tile_around(self, index: int, east_m: float, north_m: float) -> Pixels:
        """Return a raw satellite tile of the same size, S S 3, whose centre is off the pair's position.

        Args:
            index: index of the pair.
            east_m, north_m: offset of the tile's centre in metres, rounded to whole pixels of the tile.

        Raises:
            DatasetError: the data set has no raw tiles, or a margin that is smaller than the offset.
        """
        size, margin = self.tile_size, self.info.margin_px
        for name, metres in (("east_m", east_m), ("north_m", north_m)):
            if not abs(metres) <= self.info.margin_m:
                raise DatasetError(
                    f"{name}={metres:g} is outside the margin of {self.uri}, {self.info.margin_m:g} m around each "
                    "tile: prepare it again with a larger prepare.margin_m"
                )
        row = margin - round(north_m * size.px / size.metres)
        column = margin + round(east_m * size.px / size.metres)
        return self.wide_tile(index)[row : row + size.px, column : column + size.px]

    def wide_tile(self, index: int) -> Pixels:
        """Return a raw satellite tile with its margin, `tile_px + 2 * margin_px` square; see `DatasetInfo`.

        Raises:
            DatasetError: the data set has no raw tiles, or tiles of unknown size.
        """
        side = self.tile_size.px + 2 * self.info.margin_px
        pixels = self._decode("satellite", index)
        if pixels.shape != (side, side, 3):
            raise DatasetError(
                f"{self.uri}: satellite image of {self.ids[index]} is {pixels.shape[1]} x {pixels.shape[0]}, "
                f"expected {side} x {side}"
            )
        return pixels

    def _require_margin(self) -> None:
        distance = 0.0 if self.augmentation is None else self.augmentation.offcentre_m
        if distance > self.info.margin_m:
            raise ConfigError(
                f"augmentation.offcentre_m={distance:g} is more than the margin of {self.uri}, "
                f"{self.info.margin_m:g} m: prepare it with prepare.margin_m={distance:g}, prepare.keep_tiles=true and "
                "a source that cuts or renders its tiles, or set augmentation.offcentre_m=0"
            )

    @property
    def tile_size(self) -> TileSize:
        """The size of a raw tile without its margin. Raises DatasetError if it is unknown."""
        size = self.info.tile_size
        if not self.info.keep_tiles or size is None:
            raise DatasetError(
                f"{self.uri} was prepared without raw tiles of known size: prepare it again with "
                "prepare.keep_tiles=true and prepare.margin_m, from a source that cuts or renders its tiles"
            )
        return size

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Combine samples with `collate` for this data set's image size; pass this to the loader."""
        batch = collate(samples, (self.height, self.width))
        if samples or self.augmentation is None:
            return batch
        side = self.tile_size.px + 2 * self.info.margin_px if self.augmentation.offcentre_m else None
        tiles = None if side is None else torch.empty((0, 3, side, side), dtype=torch.uint8)
        return replace(batch, tiles=tiles, draws=Draws.of([]))

    def _planes(self, column: str, index: int) -> Tensor:
        pixels = self._decode(column, index)
        if pixels.shape != (self.height, self.width, 3):
            raise DatasetError(
                f"{self.uri}: {column} image of {self.ids[index]} is {pixels.shape[1]} x {pixels.shape[0]}, "
                f"expected {self.width} x {self.height}"
            )
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def _mask(self, index: int) -> Tensor | None:
        """Return what the panorama of a pair shows, bool H W; None if that is all of it."""
        pixels = self._decode_any("seen", index) if self.info.masked else None
        return None if pixels is None else torch.from_numpy(pixels[..., 0] > 127)

    def _decode(self, column: str, index: int) -> Pixels:
        pixels = self._decode_any(column, index)
        assert pixels is not None, f"column {column} has no null"
        return pixels

    def _decode_any(self, column: str, index: int) -> Pixels | None:
        """Return an image; None if there is none, as in the column `seen` of most pairs."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} pairs")
        shard = int(np.searchsorted(self._ends, index, side="right"))
        row = index - int(self._ends[shard]) + self.shard_sizes[shard]
        table = self._cache.table(self._shards[shard])
        data = table.column(column)[row].as_py() if column in table.column_names or column != "seen" else None
        try:
            return None if data is None else decode(data)
        except UnreadableImageError as error:
            raise DatasetError(
                f"{self.uri}: {column} image of {self.ids[index]} in {self._shards[shard].name} {error}"
            ) from None


def _read_records(uri: str, digest: str) -> pa.Table:
    data = storage.read_bytes(uri)
    if storage.sha256(data) != digest:
        raise DamagedError(f"{uri} fails its checksum: it is damaged; prepare the data set again")
    return pa.ipc.open_file(data).read_all()


def _pairs(records: pa.Table, first: str, second: str) -> NDArray[np.float64]:
    columns = [records.column(name).fill_null(float("nan")).to_numpy() for name in (first, second)]
    return np.stack(columns, axis=1).astype(np.float64)

"""Rows of descriptors, in memory or in a file if there are too many for it."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from s2s_ray.errors import DiskFullError
from s2s_ray.storage.filesystem import is_full

RowIndex = slice | Tensor | list[int]


class Rows(Protocol):
    """N rows of D numbers: a tensor, or an object that is read like one."""

    @property
    def shape(self) -> torch.Size: ...

    @property
    def device(self) -> torch.device: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: RowIndex, /) -> Tensor: ...

    def __setitem__(self, rows: slice, values: Tensor, /) -> None: ...


class StoredRows:
    """N rows of D float32 numbers in a temporary file, which is removed with this object.

    Every access maps the file anew and copies, so that neither this object nor a result keeps more in memory than the
    rows that were read; the file cache of the system makes it fast.

    Raises:
        DiskFullError: the temporary directory has no room for them.
    """

    def __init__(self, count: int, width: int) -> None:
        self.shape = torch.Size((count, width))
        self.device = torch.device("cpu")
        folder = tempfile.mkdtemp(prefix="s2s-descriptors-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._path = Path(folder) / "rows.npy"
        np.lib.format.open_memmap(self._path, "w+", np.float32, shape=(count, width))
        _reserve(self._path)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: RowIndex) -> Tensor:
        """Return the rows of a slice, or those with the given numbers, in that order."""
        mapped = np.lib.format.open_memmap(self._path, "r")
        return torch.from_numpy(np.array(mapped[rows.numpy() if isinstance(rows, Tensor) else rows]))

    def __setitem__(self, rows: slice, values: Tensor) -> None:
        mapped = np.lib.format.open_memmap(self._path, "r+")
        assert values.shape == mapped[rows].shape
        mapped[rows] = values.detach().float().cpu().numpy()


def _reserve(path: Path) -> None:
    """Allocate the blocks of a sparse file: writing to a mapping on a full disk would kill the process."""
    size, folder = path.stat().st_size, path.parent.parent
    if hasattr(os, "posix_fallocate"):  # not on macOS
        with path.open("r+b") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                if is_full(error):
                    raise DiskFullError(f"{folder} has no room for {size:,} bytes of descriptors: {error}") from None
                if error.errno not in (
                    errno.EOPNOTSUPP,
                    errno.EINVAL,
                    errno.ENOSYS,
                ):  # a file system that cannot reserve
                    raise

"""Descriptors of more pairs than memory should hold: rows of numbers in a file, read a few at a time."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

RowIndex = slice | Tensor | list[int]


class Rows(Protocol):
    """N rows of D numbers: a tensor, or what reads like one."""

    @property
    def shape(self) -> torch.Size: ...

    @property
    def device(self) -> torch.device: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: RowIndex, /) -> Tensor: ...

    def __setitem__(self, rows: slice, values: Tensor, /) -> None: ...


class StoredRows:
    """Rows N D of float32 in a temporary file of this process, gone with this object.

    Reading copies, so that memory holds no more than what was asked for; the system's file cache makes it fast.
    """

    def __init__(self, count: int, width: int) -> None:
        self.shape = torch.Size((count, width))
        self.device = torch.device("cpu")
        folder = tempfile.mkdtemp(prefix="s2s-descriptors-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._path = Path(folder) / "rows.f32"
        with self._path.open("wb") as file:
            file.truncate(count * width * 4)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: RowIndex) -> Tensor:
        """A slice without step, or rows by number, in the order asked for."""
        width = self.shape[1]
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            assert step == 1
            values = np.fromfile(self._path, np.float32, max(0, stop - start) * width, offset=start * width * 4)
            return torch.from_numpy(values.reshape(-1, width))
        numbers = rows.tolist() if isinstance(rows, Tensor) else rows
        found = np.empty((len(numbers), width), np.float32)
        with self._path.open("rb") as file:
            for place, row in enumerate(numbers):
                file.seek(row * width * 4)
                found[place] = np.fromfile(file, np.float32, width)
        return torch.from_numpy(found)

    def __setitem__(self, rows: slice, values: Tensor) -> None:
        start, stop, step = rows.indices(len(self))
        assert step == 1
        assert values.shape == (stop - start, self.shape[1])
        with self._path.open("r+b") as file:
            file.seek(start * self.shape[1] * 4)
            file.write(values.detach().float().cpu().contiguous().numpy().data)

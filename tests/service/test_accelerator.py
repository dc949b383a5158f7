"""Which errors say that the accelerator of a replica is lost, and which that memory has run out."""

from __future__ import annotations

import pytest
import torch
from ray.exceptions import RayTaskError

from s2s_ray.errors import ReleaseNotLoadedError
from s2s_ray.service.replicas.accelerator import is_full, is_lost


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


LOST = [
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered", 700),
    torch.AcceleratorError("unspecified launch failure", 719),
    RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("HIP error: the operation cannot be performed"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_INTERNAL_ERROR when calling `cublasSgemm`"),
    caused(ValueError("a library's own"), RuntimeError("CUDA error: unknown error")),
]
FULL = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    torch.AcceleratorError("CUDA error: out of memory", 2),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"),
    MemoryError("Unable to allocate 1.00 TiB"),
]
OTHER = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"),
    ValueError("CUDA error"),
    TimeoutError("out of memory"),
    ReleaseNotLoadedError("release x cannot be loaded: CUDA error"),
]


def as_ray_raises_it(error: Exception) -> Exception:
    traceback = 'File "loop.py": raise RuntimeError("CUDA error: out of memory")'  # its lines prove nothing
    return RayTaskError("call", traceback, error).as_instanceof_cause()


@pytest.mark.parametrize("error", LOST + FULL + OTHER, ids=lambda error: str(error)[:40])
def test_kinds_of_failure(error: Exception) -> None:
    expected = (error in LOST, error in FULL)
    assert (is_lost(error), is_full(error)) == expected
    wrapped = as_ray_raises_it(error)
    assert (is_lost(wrapped), is_full(wrapped)) == expected


def test_a_circle_of_causes_ends() -> None:
    first, second = RuntimeError("first"), RuntimeError("second")
    first.__cause__, second.__cause__ = second, first
    assert not is_lost(first)

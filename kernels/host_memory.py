"""Memory of the host for caches that are read from one end to the other, again and again."""

import ctypes

import torch
from torch import Tensor

from mainboard.kernels import library

__all__ = ["zeros"]


def zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor of zeros as `torch.zeros` makes it, but laid out for reading at the memory's speed.

    The system is asked for huge pages (`madvise`, which does nothing where it is not Linux or
    `/sys/kernel/mm/transparent_hugepage/enabled` says never). Each of torch's threads writes an
    equal share first, so that on a machine of several nodes the tensor is spread over the nodes of
    these threads, rather than all of it on the caller's. Without the compiled library it is
    `torch.zeros`.
    """
    found = library.loaded("cpu")
    if not found.loaded:
        return torch.zeros(shape, dtype=dtype)
    tensor = torch.empty(shape, dtype=dtype)
    prepare = ctypes.CDLL(found.path).mainboard_cpu_prepare
    prepare.restype = ctypes.c_int64
    prepare.argtypes = (ctypes.c_void_p, ctypes.c_int64)
    prepare(tensor.data_ptr(), tensor.numel() * tensor.element_size())
    return tensor

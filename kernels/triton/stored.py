"""How the kernels read and write a cache's elements."""

import torch
from torch import Tensor

from mainboard.kernels.triton.device.numeric import Stored
from mainboard.kernels.triton.plan import target

__all__ = ["bits", "readable", "step"]

_BITS = {
    torch.float8_e4m3fn: Stored.E4M3,
    torch.float8_e5m2: Stored.E5M2,
    torch.float8_e4m3fnuz: Stored.E4M3FNUZ,
    torch.float8_e5m2fnuz: Stored.E5M2FNUZ,
}
# Architectures whose conversions from these formats are instructions. gfx1201 has them too, but
# Triton 3.6 cannot compile them behind loads with 32-bit offsets.
_CAST = {
    torch.float8_e4m3fn: ("sm_89", "sm_90", "sm_100", "sm_103", "sm_120", "gfx950"),
    torch.float8_e5m2: ("sm_89", "sm_90", "sm_100", "sm_103", "sm_120", "gfx950"),
    torch.float8_e4m3fnuz: ("gfx942",),
    torch.float8_e5m2fnuz: ("gfx942",),
}


def bits(x: Tensor) -> tuple[Tensor, Stored]:
    """A cache as bytes if it holds 8-bit floats, and which ones."""
    how = _BITS.get(x.dtype, Stored.SAME)
    return (x.view(torch.uint8) if how else x), how


def readable(dtype: torch.dtype, index: int) -> Stored:
    """How a device reads elements of a cache: `CAST` takes them as they are, others as bytes."""
    if dtype in _BITS and target(index) in _CAST[dtype]:
        return Stored.CAST
    return _BITS.get(dtype, Stored.SAME)


def step(scale: Tensor | None) -> int:
    """From one head's scale to the next's."""
    return 0 if scale is None or scale.shape[0] == 1 else 1

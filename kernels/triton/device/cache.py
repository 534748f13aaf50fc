"""New keys and values, written into the pages of a cache."""

import triton
import triton.language as tl

from mainboard.kernels.triton.device.numeric import narrow

__all__ = ["write_kernel"]


@triton.jit
def write_kernel(
    X, CACHE, SLOTS, SCALE, limit, stride_xt, stride_xh, stride_page, stride_slot, stride_head,
    stride_scale, PAGE: tl.constexpr, DIM: tl.constexpr, PAD: tl.constexpr, STORED: tl.constexpr,
):  # fmt: skip
    """One head of one token; slot -1 skips it. 8-bit floats are saturated, and NaN stays NaN."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    slot = tl.load(SLOTS + token)
    if slot < 0:
        return
    column = tl.arange(0, PAD)
    inside = column < DIM
    x = tl.load(X + token * stride_xt + head * stride_xh + column, mask=inside, other=0.0)
    if STORED > 0:
        x = x.to(tl.float32)
        if SCALE is not None:
            x = x * tl.math.div_rn(1.0, tl.load(SCALE + head * stride_scale))
        limited = tl.minimum(tl.maximum(x, -limit), limit)
        x = narrow(tl.where(x == x, limited, x), STORED)
    at = slot // PAGE * stride_page + slot % PAGE * stride_slot + head * stride_head
    tl.store(CACHE + at + column, x, mask=inside)

"""Partial results over disjoint keys, joined by their log-sum-exp."""

import triton
import triton.language as tl

from mainboard.kernels.triton.device.attention import LN2, LOG2E

__all__ = ["combine_kernel", "merge_kernel"]


@triton.jit(do_not_specialize=["tokens", "batch", "stride_lh"])
def combine_kernel(
    OUT, LSE, PART_OUT, PART_LSE, CU_Q, batch, tokens, heads, stride_ot, stride_oh, stride_lh,
    SPLITS: tl.constexpr, SPLITS_PAD: tl.constexpr, VDIM: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Join the splits of one row; parts hold float32, and logarithms to base 2."""
    row = tl.program_id(0).to(tl.int64)
    token = row // heads
    head = row % heads
    if token >= tl.load(CU_Q + batch):
        return  # padding behind the last sequence
    split = tl.arange(0, SPLITS_PAD)
    step = tl.cast(tokens, tl.int64) * heads
    lse = tl.load(PART_LSE + split * step + row, mask=split < SPLITS, other=float("-inf"))
    most = tl.max(lse, 0)
    weight = tl.math.exp2(lse - tl.where(most == float("-inf"), 0.0, most))
    total = tl.sum(weight, 0)
    some = tl.where(total > 0.0, total, 1.0)
    weight = weight / some
    column = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    parts = PART_OUT + (split * step + row)[:, None] * VDIM + column[None, :]
    held = (weight > 0.0)[:, None] & (column < VDIM)[None, :]
    out = tl.sum(tl.load(parts, mask=held, other=0.0) * weight[:, None], 0)
    target = OUT + token * stride_ot + head * stride_oh + column
    tl.store(target, out.to(OUT.dtype.element_ty), mask=column < VDIM)
    if LSE is not None:
        if tl.program_id(1) == 0:
            tl.store(LSE + head * stride_lh + token, (most + tl.math.log2(some)) * LN2)


@triton.jit(do_not_specialize=["tokens"])
def merge_kernel(
    OUT, OUT_LSE, A, A_LSE, B, B_LSE, tokens,
    stride_ot, stride_oh, stride_at, stride_ah, stride_bt, stride_bh,
    stride_olh, stride_olt, stride_alh, stride_alt, stride_blh, stride_blt,
    DIM: tl.constexpr, PAD: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Join two results for some tokens of one head; a part without keys is not read."""
    token = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    head = tl.program_id(1).to(tl.int64)
    live = token < tokens
    nothing = float("-inf")
    a_lse = tl.load(A_LSE + head * stride_alh + token * stride_alt, mask=live, other=nothing)
    b_lse = tl.load(B_LSE + head * stride_blh + token * stride_blt, mask=live, other=nothing)
    most = tl.maximum(a_lse, b_lse)
    level = tl.where(most == nothing, 0.0, most)
    a_weight = tl.math.exp2((a_lse - level) * LOG2E)
    b_weight = tl.math.exp2((b_lse - level) * LOG2E)
    total = a_weight + b_weight
    some = tl.where(total > 0.0, total, 1.0)
    share = 1.0 / some
    column = tl.arange(0, PAD)
    inside = (column < DIM)[None, :]
    a_at = (token * stride_at + head * stride_ah)[:, None] + column[None, :]
    b_at = (token * stride_bt + head * stride_bh)[:, None] + column[None, :]
    a = tl.load(A + a_at, mask=(live & (a_weight > 0.0))[:, None] & inside, other=0.0)
    b = tl.load(B + b_at, mask=(live & (b_weight > 0.0))[:, None] & inside, other=0.0)
    out = a.to(tl.float32) * (a_weight * share)[:, None]
    out += b.to(tl.float32) * (b_weight * share)[:, None]
    at = (token * stride_ot + head * stride_oh)[:, None] + column[None, :]
    tl.store(OUT + at, out.to(OUT.dtype.element_ty), mask=live[:, None] & inside)
    if OUT_LSE is not None:
        lse = tl.where(total > 0.0, level + tl.math.log2(some) * LN2, nothing)
        tl.store(OUT_LSE + head * stride_olh + token * stride_olt, lse, mask=live)

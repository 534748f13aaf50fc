"""Latent attention: a cached row is every head's key, and its front their value.

The row is loaded once, as its latent and its rotary part, and serves both products. Where matrix
units take all operands from registers that is too much at once: there the first product is made of
slices of SLICE columns, each loaded for it.
"""

import triton
import triton.language as tl

from mainboard.kernels.triton.device.attention import (
    LN2,
    LOG2E,
    find_sequence,
    load_block,
    page_at,
    pages_of,
)
from mainboard.kernels.triton.device.numeric import widen

__all__ = ["latent_kernel"]


@triton.jit
def walk_rows(
    acc, total, most, q, q_rotary, q_row, in_row, begin, end, CACHE, LATENT_DESC, ROTARY_DESC, table, length,
    position, scale, stride_page, BLOCK_M: tl.constexpr, SLICE: tl.constexpr, ROW: tl.constexpr, RIGHT: tl.constexpr, PLAIN: tl.constexpr,
    LATENT: tl.constexpr, LATENT_PAD: tl.constexpr, ROTARY: tl.constexpr,
    ROTARY_PAD: tl.constexpr, PAGE: tl.constexpr, NEAR: tl.constexpr, BLOCK_N: tl.constexpr,
    STORED: tl.constexpr, DESCRIBED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Take the blocks of rows from `begin` up to `end` into the running softmax of a tile."""
    WHOLE: tl.constexpr = PAGE % BLOCK_N == 0
    slot = tl.arange(0, BLOCK_N)
    latent_col = tl.arange(0, LATENT_PAD)
    rotary_col = tl.arange(0, ROTARY_PAD)
    following = begin
    if WHOLE:
        following = page_at(table, begin, end, PAGE)
    for first in tl.range(begin, end, BLOCK_N):
        first = tl.multiple_of(first, BLOCK_N)
        key = first + slot
        if WHOLE:
            # Asked for a step ahead: nothing else hides how long the table takes to answer.
            page = following
            following = page_at(table, first + BLOCK_N, end, PAGE)
        else:
            page = pages_of(table, slot, key, first, length, PAGE, BLOCK_N, NEAR, MASKED)
        if DESCRIBED and not MASKED:
            row = page * PAGE + first % PAGE
            c = LATENT_DESC.load([row, 0])
        else:
            c = load_block(CACHE, page, first, slot, latent_col, key, length, stride_page, ROW,
                           LATENT, LATENT_PAD, PAGE, NEAR, BLOCK_N, MASKED)  # fmt: skip
        c = widen(c, q.dtype, STORED)
        if SLICE == 0:
            s = tl.dot(q, tl.trans(c), input_precision="ieee")
        else:
            s = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            # The bound is LATENT_PAD in words that the compiler does not see through: it would
            # unroll the loop, and hold every slice at once.
            for left in tl.range(0, tl.minimum(length, 0) + LATENT_PAD, SLICE):
                column = left + tl.arange(0, SLICE)
                q_slice = tl.load(
                    q_row + column[None, :], mask=in_row & (column < LATENT)[None, :], other=0.0
                )
                k = load_block(CACHE, page, first, slot, column, key, length, stride_page, ROW,
                               LATENT, LATENT_PAD, PAGE, NEAR, BLOCK_N, MASKED)  # fmt: skip
                k = widen(k, q.dtype, STORED)
                s = tl.dot(q_slice, tl.trans(k), s, input_precision="ieee")
        if ROTARY > 0:
            if DESCRIBED and not MASKED:
                r = ROTARY_DESC.load([row, LATENT])
            else:
                r = load_block(
                    CACHE + LATENT, page, first, slot, rotary_col, key, length, stride_page, ROW,
                    ROTARY, ROTARY_PAD, PAGE, NEAR, BLOCK_N, MASKED,
                )  # fmt: skip
            r = widen(r, q.dtype, STORED)
            s = tl.dot(q_rotary, tl.trans(r), s, input_precision="ieee")
        step = scale
        if not PLAIN:
            s *= scale
            step = 1.0
        if MASKED:
            seen = (key < length)[None, :]
            if RIGHT:
                seen &= key[None, :] <= position[:, None]
            s = tl.where(seen, s, float("-inf"))
        highest = tl.maximum(most, tl.max(s, 1) * step)
        level = highest
        if MASKED:
            level = tl.where(highest == float("-inf"), 0.0, highest)
        p = tl.math.exp2(s * step - level[:, None])
        decay = tl.math.exp2(most - level)
        total = total * decay + tl.sum(p, 1)
        acc = acc * decay[:, None]
        acc = tl.dot(p.to(q.dtype), c, acc, input_precision="ieee")
        most = highest
    return acc, total, most


@triton.jit(do_not_specialize=["batch", "blocks", "tokens", "stride_lh", "stride_table"])
def latent_kernel(
    Q, CACHE, OUT, LSE, PART_OUT, PART_LSE, LATENT_DESC, ROTARY_DESC, CU_Q, USED_K, TABLE, SCALE,
    batch, blocks, tokens, heads, scale,
    stride_qt, stride_qh, stride_page, stride_ot, stride_oh, stride_lh, stride_table,
    ROW: tl.constexpr, LATENT: tl.constexpr, LATENT_PAD: tl.constexpr, ROTARY: tl.constexpr,
    ROTARY_PAD: tl.constexpr, PACK: tl.constexpr, PAGE: tl.constexpr, NEAR: tl.constexpr,
    STORED: tl.constexpr, RIGHT: tl.constexpr, POSITIVE: tl.constexpr, EVEN: tl.constexpr,
    SPLITS: tl.constexpr, DESCRIBED: tl.constexpr, SLICE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SHORTEST: tl.constexpr,
):  # fmt: skip
    """One tile of queries and heads over its rows, or with several SPLITS over its share."""
    TOKENS: tl.constexpr = BLOCK_M // PACK
    # Short, because rows of a masked block are loaded one by one, and each address is a register.
    LAST_N: tl.constexpr = BLOCK_N // 4 if BLOCK_N >= 64 else BLOCK_N
    PLAIN: tl.constexpr = POSITIVE and SCALE is None
    pid = tl.program_id(0)
    split = tl.program_id(1)
    head_tiles = tl.cdiv(heads, PACK)
    block = blocks - 1 - pid // head_tiles
    if EVEN:
        seq = block % batch
        q_begin = tl.load(CU_Q + seq)
        first_token = block // batch * TOKENS
    else:
        seq = find_sequence(CU_Q, block, batch, TOKENS)
        q_begin = tl.load(CU_Q + seq)
        first_token = (block - q_begin // TOKENS - seq) * TOKENS
    q_length = tl.load(CU_Q + seq + 1) - q_begin
    if first_token >= q_length:
        return
    length = tl.load(USED_K + seq)

    tile_row = tl.arange(0, BLOCK_M)
    token = first_token + tile_row // PACK
    head = pid % head_tiles * PACK + tile_row % PACK
    live = (tile_row < TOKENS * PACK) & (token < q_length) & (head < heads)
    position = token + (length - q_length)
    earliest = first_token + length - q_length
    begin = 0
    end = length
    full = length
    if RIGHT:
        last_token = tl.minimum(first_token + TOKENS, q_length) - 1
        end = tl.maximum(tl.minimum(length, last_token + length - q_length + 1), 0)
        full = tl.maximum(tl.minimum(length, earliest + 1), 0)
    if SPLITS > 1:
        share = tl.maximum(tl.cdiv(tl.cdiv(end, BLOCK_N), SPLITS), SHORTEST) * BLOCK_N
        begin = split * share
        end = tl.minimum(end, begin + share)
    full = tl.maximum(tl.minimum(full, end) // BLOCK_N * BLOCK_N, begin)

    q_row = Q + ((q_begin + token).to(tl.int64) * stride_qt + head * stride_qh)[:, None]
    latent_col = tl.arange(0, LATENT_PAD)
    rotary_col = tl.arange(0, ROTARY_PAD)
    in_latent = live[:, None]
    if LATENT != LATENT_PAD:
        in_latent = in_latent & (latent_col < LATENT)[None, :]
    q = tl.load(q_row + latent_col[None, :], mask=in_latent, other=0.0)
    q_rotary = q
    in_row = live[:, None]
    if ROTARY > 0:
        in_rotary = live[:, None] & (rotary_col < ROTARY)[None, :]
        q_rotary = tl.load(q_row + LATENT + rotary_col[None, :], mask=in_rotary, other=0.0)
    scale = tl.cast(scale, tl.float32) * LOG2E  # Inductor passes Python's numbers as float64
    if SCALE is not None:
        scale *= tl.load(SCALE)
    most = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, LATENT_PAD], tl.float32)
    table = TABLE + seq.to(tl.int64) * stride_table
    for phase in tl.static_range(2):
        acc, total, most = walk_rows(
            acc, total, most, q, q_rotary, q_row, in_row, full if phase == 1 else begin,
            end if phase == 1 else full, CACHE, LATENT_DESC, ROTARY_DESC, table, length, position,
            scale, stride_page, BLOCK_M, SLICE, ROW, RIGHT, PLAIN, LATENT, LATENT_PAD, ROTARY,
            ROTARY_PAD, PAGE, NEAR, LAST_N if phase == 1 else BLOCK_N, STORED, DESCRIBED,
            phase == 1,
        )  # fmt: skip

    some = tl.where(total > 0.0, total, 1.0)
    acc = acc / some[:, None]
    if SCALE is not None:
        acc *= tl.load(SCALE)
    lse = tl.where(total > 0.0, most + tl.math.log2(some), float("-inf"))
    if SPLITS > 1:
        part = (split.to(tl.int64) * tokens + q_begin + token) * heads + head
        has = in_latent & (total > 0.0)[:, None]
        tl.store(PART_OUT + part[:, None] * LATENT + latent_col[None, :], acc, mask=has)
        tl.store(PART_LSE + part, lse, mask=live)
    else:
        o_row = OUT + ((q_begin + token).to(tl.int64) * stride_ot + head * stride_oh)[:, None]
        tl.store(o_row + latent_col[None, :], acc.to(OUT.dtype.element_ty), mask=in_latent)
        if LSE is not None:
            l_row = head.to(tl.int64) * stride_lh + q_begin + token
            tl.store(LSE + l_row, lse * LN2, mask=live)

"""Attention over sequences of any lengths, dense or paged: one kernel for prefill and decode.

A tile has TOKENS queries times PACK heads that share a key head, and walks over blocks of BLOCK_N
keys. Blocks that every row of the tile sees need no mask and are walked without one. With several
SPLITS the keys of a tile are shared out, and `combine_kernel` joins the parts.
"""

import triton
import triton.language as tl

from mainboard.kernels.triton.device.numeric import tanh, widen

__all__ = ["attention_kernel"]

# The kernel works with exponentials and logarithms to base 2.
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def find_sequence(CU_Q, block, batch, TOKENS: tl.constexpr):
    """The sequence to which a tile belongs, when sequence i's tiles begin at cu[i] / TOKENS + i."""
    low = 0
    high = batch
    while low < high:
        middle = (low + high) // 2
        if tl.load(CU_Q + middle) // TOKENS + middle <= block:
            low = middle + 1
        else:
            high = middle
    return low - 1


@triton.jit
def page_at(table, first, end, PAGE: tl.constexpr):
    """The cache page that holds a whole block, or 0 behind the last block."""
    return tl.load(table + first // PAGE, mask=first < end, other=0)


@triton.jit
def pages_of(
    table, slot, key, first, length,
    PAGE: tl.constexpr, BLOCK_N: tl.constexpr, NEAR: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The cache page of each key of a block."""
    if BLOCK_N % PAGE == 0:
        at = table + first // PAGE + slot // PAGE
    else:
        at = table + key // PAGE
    if MASKED:
        page = tl.load(at, mask=key < length, other=0)
    else:
        page = tl.load(at)
    return page if NEAR else page.to(tl.int64)


@triton.jit
def load_block(
    base, page, first, slot, column, key, length, stride_page, stride_slot,
    DIM: tl.constexpr, PAD: tl.constexpr, PAGE: tl.constexpr, NEAR: tl.constexpr,
    BLOCK_N: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """BLOCK_N rows of keys or values; rows past the end are zero, whatever the memory holds."""
    if PAGE % BLOCK_N == 0:
        if PAGE == 0:
            begin = first if NEAR else first.to(tl.int64)
            begin *= stride_slot
        elif NEAR:
            begin = page * stride_page + first % PAGE * stride_slot
        else:
            begin = page.to(tl.int64) * stride_page + (first % PAGE).to(tl.int64) * stride_slot
        within = slot[:, None] * stride_slot + column[None, :]
        if NEAR:
            # Added as 32 bits, an address takes one register from block to block, and not two.
            pointers = base + (begin + within)
        else:
            pointers = base + begin + within
    else:
        # Where keys lie in their pages is the same for each block, unless a page ends inside one.
        within = slot % PAGE if BLOCK_N % PAGE == 0 else key % PAGE
        within = within.to(page.dtype)[:, None] * stride_slot + column[None, :]
        pointers = base + (page[:, None] * stride_page + within)
    if MASKED and DIM != PAD:
        return tl.load(pointers, mask=(key < length)[:, None] & (column < DIM)[None, :], other=0.0)
    elif MASKED:
        return tl.load(pointers, mask=(key < length)[:, None], other=0.0)
    elif DIM != PAD:
        return tl.load(pointers, mask=(column < DIM)[None, :], other=0.0)
    else:
        return tl.load(pointers)


@triton.jit
def biased(s, scale, softcap, slope, position, key, SOFTCAP: tl.constexpr, ALIBI: tl.constexpr):
    """Scaled products as scores to base 2, capped and biased."""
    if SOFTCAP:
        s = tanh(s * (scale / softcap)) * (softcap * LOG2E)
    else:
        s = s * (scale * LOG2E)
    if ALIBI:
        distance = tl.abs(position[:, None] - key[None, :]).to(tl.float32)
        s -= (slope * LOG2E)[:, None] * distance
    return s


@triton.jit
def fetch(
    base, DESC, begin, column, page, first, slot, length, stride_page, stride_slot, dtype,
    DIM: tl.constexpr, PAD: tl.constexpr, PAGE: tl.constexpr, NEAR: tl.constexpr,
    BLOCK_N: tl.constexpr, STORED: tl.constexpr, DESCRIBED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """A block of keys or values in the dtype of the arithmetic, by descriptor where that can be."""
    if DESCRIBED and not MASKED:
        row = page * PAGE + first % PAGE if PAGE > 0 else begin + first
        x = DESC.load([row, column])
    else:
        x = load_block(base, page, first, slot, tl.arange(0, PAD), first + slot, length, stride_page,
                       stride_slot, DIM, PAD, PAGE, NEAR, BLOCK_N, MASKED)  # fmt: skip
    return widen(x, dtype, STORED)


@triton.jit
def soften(s, step, most, total, MASKED: tl.constexpr):
    """Scores as weights, and what that changes of a running softmax."""
    highest = tl.maximum(most, tl.max(s, 1) * step)
    level = highest
    if MASKED:
        # A row that has seen nothing yet must not subtract infinity from itself.
        level = tl.where(highest == float("-inf"), 0.0, highest)
    p = tl.math.exp2(s * step - level[:, None])
    decay = tl.math.exp2(most - level)
    total = total * decay + tl.sum(p, 1)
    return p, decay, total, highest


@triton.jit
def walk(
    acc, total, most, q, begin, end, K, V, K_DESC, V_DESC, k_begin, k_column, v_column, table,
    length, position, slope, left, right, scale, softcap,
    stride_kp, stride_kt, stride_vp, stride_vt,
    DIM: tl.constexpr, PAD: tl.constexpr, VDIM: tl.constexpr, VPAD: tl.constexpr,
    PAGE: tl.constexpr, NEAR: tl.constexpr, BLOCK_N: tl.constexpr, STORED: tl.constexpr,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, SOFTCAP: tl.constexpr, ALIBI: tl.constexpr,
    PLAIN: tl.constexpr, DESCRIBED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Take the blocks of keys from `begin` up to `end` into the running softmax of a tile."""
    WHOLE: tl.constexpr = PAGE > 0 and PAGE % BLOCK_N == 0
    slot = tl.arange(0, BLOCK_N)
    # The scale is left to one multiply-add in front of the exponential, where nothing is between.
    step = scale * LOG2E if PLAIN else 1.0
    following = begin
    if WHOLE:
        following = page_at(table, begin, end, PAGE)
    for first in tl.range(begin, end, BLOCK_N):
        first = tl.multiple_of(first, BLOCK_N)
        key = first + slot
        page = first
        if WHOLE:
            # Asked for a step ahead: nothing else hides how long the table takes to answer.
            page = following
            following = page_at(table, first + BLOCK_N, end, PAGE)
        elif PAGE > 0:
            page = pages_of(table, slot, key, first, length, PAGE, BLOCK_N, NEAR, MASKED)
        k = fetch(K, K_DESC, k_begin, k_column, page, first, slot, length, stride_kp,
                  stride_kt, q.dtype, DIM, PAD, PAGE, NEAR, BLOCK_N, STORED, DESCRIBED,
                  MASKED)  # fmt: skip
        s = tl.dot(q, tl.trans(k), input_precision="ieee")
        if not PLAIN:
            s = biased(s, scale, softcap, slope, position, key, SOFTCAP, ALIBI)
        if MASKED:
            seen = (key < length)[None, :]
            if RIGHT:
                seen &= key[None, :] <= position[:, None] + right
            if LEFT:
                seen &= key[None, :] >= position[:, None] - left
            s = tl.where(seen, s, float("-inf"))
        p, decay, total, most = soften(s, step, most, total, MASKED)
        acc = acc * decay[:, None]
        v = fetch(V, V_DESC, k_begin, v_column, page, first, slot, length, stride_vp,
                  stride_vt, q.dtype, VDIM, VPAD, PAGE, NEAR, BLOCK_N, STORED, DESCRIBED,
                  MASKED)  # fmt: skip
        acc = tl.dot(p.to(q.dtype), v, acc, input_precision="ieee")
    return acc, total, most


@triton.jit
def rows_of(
    row, first_token, q_length, head_tile, kv_head,
    TOKENS: tl.constexpr, PACK: tl.constexpr, CHUNKS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """The token and the head of each row of a tile, and whether there is such a row."""
    token = first_token + row // PACK
    head = head_tile % CHUNKS * PACK + row % PACK
    live = (row < TOKENS * PACK) & (token < q_length) & (head < GROUP)
    return token, kv_head * GROUP + head, live


@triton.jit(
    do_not_specialize=[
        "batch", "blocks", "tokens", "left", "right", "stride_lh", "stride_table",
    ]
)  # fmt: skip
def attention_kernel(
    Q, K, V, OUT, LSE, PART_OUT, PART_LSE, K_DESC, V_DESC, CU_Q, CU_K, USED_K, TABLE, SLOPES,
    SINKS, K_SCALE, V_SCALE, CAUSAL, batch, blocks, tokens, heads, kv_heads, scale, softcap,
    left, right,
    stride_qt, stride_qh, stride_kp, stride_kt, stride_kh, stride_vp, stride_vt, stride_vh,
    stride_ot, stride_oh, stride_lh, stride_table, stride_ks, stride_vs,
    DIM: tl.constexpr, PAD: tl.constexpr, VDIM: tl.constexpr, VPAD: tl.constexpr,
    GROUP: tl.constexpr, PACK: tl.constexpr, PAGE: tl.constexpr, NEAR: tl.constexpr,
    STORED: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, SOFTCAP: tl.constexpr,
    POSITIVE: tl.constexpr, ALIKE: tl.constexpr, EVEN: tl.constexpr,
    SPLITS: tl.constexpr, DESCRIBED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SHORTEST: tl.constexpr, AGAIN: tl.constexpr,
):  # fmt: skip
    """One tile of queries over its keys, or with several SPLITS over its share of them."""
    TOKENS: tl.constexpr = BLOCK_M // PACK
    # What the mask cuts off of the last blocks is time lost: they are short.
    LAST_N: tl.constexpr = BLOCK_N // 2 if BLOCK_M >= 128 and BLOCK_N * PAD >= 8192 else BLOCK_N
    CHUNKS: tl.constexpr = (GROUP + PACK - 1) // PACK
    ALIBI: tl.constexpr = SLOPES is not None
    # Inductor passes Python's numbers as float64.
    scale = tl.cast(scale, tl.float32)
    softcap = tl.cast(softcap, tl.float32)
    # The largest product is the largest score.
    PLAIN: tl.constexpr = POSITIVE and not SOFTCAP and SLOPES is None and K_SCALE is None
    if ALIKE:
        # Keys and values lie alike: one set of offsets serves both.
        stride_vp = stride_kp
        stride_vt = stride_kt
    pid = tl.program_id(0)
    split = tl.program_id(1)
    head_tiles = kv_heads * CHUNKS
    head_tile = pid % head_tiles
    kv_head = head_tile // CHUNKS
    # Late queries see most keys when attention is causal: they go first.
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
    k_begin = seq * 0
    length = seq * 0
    if CU_K is not None:
        k_begin = tl.load(CU_K + seq)
        length = tl.load(CU_K + seq + 1) - k_begin
    if USED_K is not None:
        length = tl.load(USED_K + seq)
    if CAUSAL is not None:
        right = tl.where(tl.load(CAUSAL + seq), 0, right)

    row = tl.arange(0, BLOCK_M)
    token, head, live = rows_of(
        row, first_token, q_length, head_tile, kv_head, TOKENS, PACK, CHUNKS, GROUP
    )
    position = token + (length - q_length)

    # The keys that some row sees, and among them the blocks that every row sees.
    last_token = tl.minimum(first_token + TOKENS, q_length) - 1
    earliest = first_token + length - q_length
    latest = last_token + length - q_length
    begin = 0
    whole = 0
    end = length
    full = length
    if LEFT:
        begin = tl.maximum(earliest - left, 0) // BLOCK_N * BLOCK_N
        whole = tl.cdiv(tl.maximum(latest - left, 0), BLOCK_N) * BLOCK_N
    if RIGHT:
        end = tl.maximum(tl.minimum(length, latest + right + 1), 0)
        full = tl.maximum(tl.minimum(length, earliest + right + 1), 0)
    if SPLITS > 1:
        share = tl.cdiv(tl.cdiv(tl.maximum(end - begin, 0), BLOCK_N), SPLITS)
        share = tl.maximum(share, SHORTEST) * BLOCK_N
        begin += split * share
        end = tl.minimum(end, begin + share)
    whole = tl.minimum(tl.maximum(whole, begin), tl.maximum(end, begin))
    full = tl.maximum(tl.minimum(full, end) // BLOCK_N * BLOCK_N, whole)

    q_col = tl.arange(0, PAD)
    q_row = (q_begin + token).to(tl.int64) * stride_qt + head * stride_qh
    q_mask = live[:, None]
    if DIM != PAD:
        q_mask = q_mask & (q_col < DIM)[None, :]
    q = tl.load(Q + q_row[:, None] + q_col[None, :], mask=q_mask, other=0.0)
    slope = position.to(tl.float32)
    if ALIBI:
        slope = tl.load(SLOPES + head, mask=live, other=0.0)
    if K_SCALE is not None:
        scale *= tl.load(K_SCALE + kv_head * stride_ks)
    most = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    if SINKS is not None:
        if split == 0:
            most = tl.load(SINKS + head, mask=live, other=0.0).to(tl.float32) * LOG2E
            total += 1.0
    acc = tl.zeros([BLOCK_M, VPAD], tl.float32)

    table = TABLE
    if PAGE > 0:
        table = TABLE + seq.to(tl.int64) * stride_table
    K += k_begin.to(tl.int64) * stride_kt + kv_head.to(tl.int64) * stride_kh
    V += k_begin.to(tl.int64) * stride_vt + kv_head.to(tl.int64) * stride_vh
    k_column = kv_head * stride_kh
    v_column = kv_head * stride_vh
    for phase in tl.static_range(3):
        if phase > 0 or LEFT:
            acc, total, most = walk(
                acc, total, most, q, begin if phase == 0 else whole if phase == 1 else full,
                whole if phase == 0 else full if phase == 1 else end, K, V, K_DESC, V_DESC, k_begin,
                k_column, v_column, table, length, position, slope, left, right, scale, softcap,
                stride_kp, stride_kt, stride_vp, stride_vt, DIM, PAD, VDIM, VPAD, PAGE, NEAR,
                LAST_N if phase == 2 else BLOCK_N, STORED, LEFT, RIGHT, SOFTCAP, ALIBI, PLAIN,
                DESCRIBED, phase != 1,
            )  # fmt: skip

    if AGAIN:
        # Kept during the walk, what is known of the rows takes registers from it. So it is worked
        # out again, with a zero that no compiler knows to be one.
        row += tl.minimum(tl.load(CU_Q, volatile=True), 0)
        token, head, live = rows_of(
            row, first_token, q_length, head_tile, kv_head, TOKENS, PACK, CHUNKS, GROUP
        )
    some = tl.where(total > 0.0, total, 1.0)
    acc = acc / some[:, None]
    if V_SCALE is not None:
        acc *= tl.load(V_SCALE + kv_head * stride_vs)
    lse = tl.where(total > 0.0, most + tl.math.log2(some), float("-inf"))
    v_col = tl.arange(0, VPAD)
    o_mask = live[:, None]
    if VDIM != VPAD:
        o_mask = o_mask & (v_col < VDIM)[None, :]
    if SPLITS > 1:
        part = (split.to(tl.int64) * tokens + q_begin + token) * heads + head
        # A part without keys is not read.
        has = o_mask & (total > 0.0)[:, None]
        tl.store(PART_OUT + part[:, None] * VDIM + v_col[None, :], acc, mask=has)
        tl.store(PART_LSE + part, lse, mask=live)
    else:
        o_row = (q_begin + token).to(tl.int64) * stride_ot + head * stride_oh
        out = acc.to(OUT.dtype.element_ty)
        tl.store(OUT + o_row[:, None] + v_col[None, :], out, mask=o_mask)
        if LSE is not None:
            l_row = head.to(tl.int64) * stride_lh + q_begin + token
            tl.store(LSE + l_row, lse * LN2, mask=live)

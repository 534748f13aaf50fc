"""What each configuration of `attention` and `mla_decode` launches, made from its sizes alone."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from mainboard.kernels.triton.device.attention import attention_kernel
from mainboard.kernels.triton.device.joining import combine_kernel
from mainboard.kernels.triton.device.latent import latent_kernel
from mainboard.kernels.triton.device.numeric import Stored
from mainboard.kernels.triton.launch import Launch, Wrap, as_is
from mainboard.kernels.triton.plan import Plan, plan
from mainboard.kernels.triton.stored import readable, step
from mainboard.kernels.triton.tiles import padded

__all__ = ["Work", "attention_work", "describe", "latent_work"]

_FARTHEST = 2**30  # beyond any position, and a position more still fits into 32 bits
_OFFSETS = 2**31  # what 32 bits count


@dataclass(frozen=True)
class Work:
    """What one configuration launches.

    Args:
        main: the kernel over the keys.
        combine: what joins its partial results, if it makes some.
        parts: `[splits, tokens, heads, dim]` of partial results, all before their log-sum-exps.
        as_bytes: a cache that the device cannot read as what it is.
        described: shape, strides and block of the two descriptors, if there are some.
        index: of the device.
    """

    main: Launch
    combine: Launch | None
    parts: tuple[int, ...]
    as_bytes: bool
    described: tuple[Any, ...]
    index: int


def _combine(
    made: Plan, out: Tensor, lse: Tensor | None, batch: int, parts: tuple[int, ...]
) -> Launch | None:
    if made.splits == 1:
        return None
    splits, tokens, heads, dim = parts
    block = min(padded(dim), 128)
    steps = out.stride(0), out.stride(1), 0 if lse is None else lse.stride(0)
    numbers = (batch, tokens, heads, *steps, splits, padded(splits), dim, block)
    options = {"num_warps": 4 if splits > 8 else 1}
    return Launch(combine_kernel, (tokens * heads, -(-dim // block)), numbers, options)


def _described(x: Tensor, block_n: int, *columns: int) -> tuple[Any, ...] | None:
    """Rows for the copy engine, all heads of a token side by side; None where they do not lie so.

    Args:
        x: `[tokens, heads, dim]`, or with pages before them.
        block_n: rows of a block.
        columns: of each block; one description for each.
    """
    *pages, tokens, heads, dim = x.shape
    if pages:
        if tokens % block_n or x.stride(0) != tokens * x.stride(1):
            return None
        tokens *= pages[0]
    row, head = x.stride(-3), x.stride(-2)
    unit = 16 // x.element_size()
    apart = row >= heads * head >= heads * dim
    if not apart or row % unit or head % unit or x.data_ptr() % 16 or not 0 < tokens < _OFFSETS:
        return None
    rows = [tokens, (heads - 1) * head + dim], [row, 1]
    return tuple((*rows, [block_n, width]) for width in columns)


def describe(work: Work, caches: tuple[Tensor, ...]) -> tuple[Any, Any]:
    """The two descriptors of a call, or none."""
    if not work.described:
        return None, None
    first, second = work.described
    return TensorDescriptor(caches[0], *first), TensorDescriptor(caches[-1], *second)


def _near(*caches: Tensor) -> bool:
    """Whether 32 bits count every element of these caches."""
    return all(
        sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
        < _OFFSETS
        for x in caches
    )


def attention_work(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor | None, batch: int,
    block_table: Tensor | None, max_seqlen_q: int, keys: int, scale: float, left: int, right: int,
    softcap: float, k_scale: Tensor | None, v_scale: Tensor | None, deterministic: bool,
    flagged: bool, wrap: Wrap,
) -> Work | None:  # fmt: skip
    """Plan a call of `attention`; None when there is nothing to do."""
    if flagged and right < 0:
        right = _FARTHEST  # of the sequences that are not causal
    tokens, heads, dim = map(int, q.shape)
    if tokens == 0 or batch == 0 or max_seqlen_q <= 0:
        return None
    kv_heads, value_dim = k.shape[-2], v.shape[-1]
    index, group = q.device.index or 0, heads // kv_heads
    pad, value_pad = padded(dim), padded(value_dim)
    made = plan(
        "attention", index, max(pad, value_pad), q.element_size(), group, kv_heads, batch, tokens,
        max_seqlen_q, keys, value_dim, deterministic, wrap is not as_is,
    )  # fmt: skip
    tile, page = made.tile, 0 if block_table is None else k.shape[1]
    how = readable(k.dtype, index)
    described: tuple[Any, ...] = ()
    whole = how is Stored.SAME and (pad, value_pad) == (dim, value_dim)
    if tile.described and whole and wrap is as_is:
        pair = _described(k, tile.block_n, pad), _described(v, tile.block_n, value_pad)
        if pair[0] is not None and pair[1] is not None:
            described = *pair[0], *pair[1]
    numbers = (
        batch, made.blocks, tokens, heads, kv_heads, scale, softcap,
        min(left, _FARTHEST), min(right, _FARTHEST),
        q.stride(0), q.stride(1), k.stride(0) if page else 0, k.stride(-3), k.stride(-2),
        v.stride(0) if page else 0, v.stride(-3), v.stride(-2), out.stride(0), out.stride(1),
        0 if lse is None else lse.stride(0), 0 if block_table is None else block_table.stride(0),
        step(k_scale), step(v_scale),
        dim, pad, value_dim, value_pad, group, made.pack, page, tile.near and _near(k, v), int(how),
        left >= 0, right >= 0, softcap > 0.0, scale > 0.0,
        (k.shape, k.stride()) == (v.shape, v.stride()), made.even, made.splits, bool(described),
        made.block_m, tile.block_n, made.shortest, tile.rows_again,
    )  # fmt: skip
    programs = made.blocks * kv_heads * -(-group // made.pack)
    parts = made.splits, tokens, heads, value_dim
    scattered = page % tile.block_n != 0
    return Work(
        Launch(attention_kernel, (programs, made.splits), numbers, tile.launch(scattered)),
        _combine(made, out, lse, batch, parts),
        parts,
        how not in (Stored.SAME, Stored.CAST),
        described,
        index,
    )


def latent_work(
    q: Tensor, cache: Tensor, out: Tensor, lse: Tensor | None, batch: int, block_table: Tensor,
    max_seqlen_q: int, keys: int, scale: float, causal: bool, deterministic: bool, wrap: Wrap,
) -> Work | None:  # fmt: skip
    """Plan a call of `mla_decode`; None when there is nothing to do."""
    tokens, heads, dim = map(int, q.shape)
    if tokens == 0 or batch == 0 or max_seqlen_q <= 0:
        return None
    index, latent = q.device.index or 0, out.shape[-1]
    made = plan(
        "latent", index, padded(latent), q.element_size(), heads, 1, batch, tokens, max_seqlen_q,
        keys, latent, deterministic, wrap is not as_is,
    )  # fmt: skip
    tile, page = made.tile, cache.shape[1]
    how, rotary = readable(cache.dtype, index), dim - latent
    pads = padded(latent), padded(max(rotary, 1))
    described: tuple[Any, ...] = ()
    if tile.described and how is Stored.SAME and pads == (latent, rotary) and wrap is as_is:
        described = _described(cache.unsqueeze(2), tile.block_n, *pads) or ()
    numbers = (
        batch, made.blocks, tokens, heads, scale, q.stride(0), q.stride(1), cache.stride(0),
        out.stride(0), out.stride(1), 0 if lse is None else lse.stride(0), block_table.stride(0),
        cache.stride(1), latent, pads[0], rotary, pads[1], made.pack, page, tile.near and _near(cache), int(how),
        causal, scale > 0.0, made.even, made.splits, bool(described), tile.slice, made.block_m,
        tile.block_n, made.shortest,
    )  # fmt: skip
    parts = made.splits, tokens, heads, latent
    grid = made.blocks * -(-heads // made.pack), made.splits
    return Work(
        Launch(latent_kernel, grid, numbers, tile.launch(page % tile.block_n != 0)),
        _combine(made, out, lse, batch, parts),
        parts,
        how not in (Stored.SAME, Stored.CAST),
        described,
        index,
    )

"""The operators on the Triton kernels: arguments checked, a plan made, kernels launched.

Each has the signature of its schema. `mainboard.kernels.gpu_dispatch` calls them directly;
`torch.ops.mainboard_triton` has the same as operators that `torch.compile` sees through
(`mainboard.kernels.triton.traced`).
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from mainboard.kernels import reference, validate
from mainboard.kernels.reference import FP8_LIMITS
from mainboard.kernels.triton.attend import attention, mla_decode
from mainboard.kernels.triton.device.cache import write_kernel
from mainboard.kernels.triton.device.joining import merge_kernel
from mainboard.kernels.triton.launch import Launch, Wrap, as_is
from mainboard.kernels.triton.stored import bits, step
from mainboard.kernels.triton.tiles import padded

__all__ = [
    "attention",
    "concat_and_cache_mla",
    "copy_blocks",
    "merge_attention_states",
    "mla_decode",
    "reshape_and_cache",
    "swap_blocks",
]


def _write(wrap: Wrap, x: Tensor, cache: Tensor, slots: Tensor, scale: Tensor | None) -> None:
    """Tokens `[tokens, heads, dim]` into a cache `[pages, page_size, heads, dim]`."""
    tokens, heads, dim = slots.shape[0], *x.shape[1:]
    if tokens == 0 or dim == 0:
        return
    cache_as, how = bits(cache)
    limit = FP8_LIMITS.get(cache.dtype, 0.0)
    numbers: tuple[Any, ...] = (limit, x.stride(0), x.stride(1), *cache.stride()[:3], step(scale))
    numbers += (cache.shape[1], dim, padded(dim), int(how))
    options = {"num_warps": 1 if dim <= 256 else 4}
    Launch(write_kernel, (tokens, heads), numbers, options).first(
        x, cache_as, slots, scale, wrap=wrap
    )


def reshape_and_cache(
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    *,
    wrap: Wrap = as_is,
) -> None:
    """Run `mainboard::reshape_and_cache`.

    Raises:
        TypeError: a dtype that is not served.
        ValueError: shapes, strides or devices that do not fit together.
    """
    validate.reshape_and_cache(key, value, key_cache, value_cache, slot_mapping, k_scale, v_scale)
    _write(wrap, key, key_cache, slot_mapping, k_scale)
    _write(wrap, value, value_cache, slot_mapping, v_scale)


def concat_and_cache_mla(
    kv_c: Tensor,
    k_pe: Tensor,
    kv_cache: Tensor,
    slot_mapping: Tensor,
    kv_scale: Tensor | None,
    *,
    wrap: Wrap = as_is,
) -> None:
    """Run `mainboard::concat_and_cache_mla`.

    Raises:
        TypeError: a dtype that is not served.
        ValueError: shapes, strides or devices that do not fit together.
    """
    validate.concat_and_cache_mla(kv_c, k_pe, kv_cache, slot_mapping, kv_scale)
    rows, latent = kv_cache.unsqueeze(2), kv_c.shape[-1]
    _write(wrap, kv_c.unsqueeze(1), rows[..., :latent], slot_mapping, kv_scale)
    _write(wrap, k_pe.unsqueeze(1), rows[..., latent:], slot_mapping, kv_scale)


def copy_blocks(caches: Sequence[Tensor], block_mapping: Tensor) -> None:
    """Run `mainboard::copy_blocks`: PyTorch's indexing moves pages as fast as a kernel could.

    Raises:
        TypeError: a mapping that is not int64.
        ValueError: shapes, strides or devices that do not fit together.
    """
    validate.copy_blocks(caches, block_mapping)
    reference.copy_blocks(caches, block_mapping)


def swap_blocks(src: Tensor, dst: Tensor, block_mapping: Tensor) -> None:
    """Run `mainboard::swap_blocks`, as PyTorch copies between devices.

    Raises:
        TypeError: dtypes that differ, or a mapping that is not int64.
        ValueError: shapes, strides or devices that do not fit together, or pages out of range.
    """
    validate.swap_blocks(src, dst, block_mapping)
    reference.swap_blocks(src, dst, block_mapping)


def merge_attention_states(
    out: Tensor,
    out_lse: Tensor | None,
    a: Tensor,
    a_lse: Tensor,
    b: Tensor,
    b_lse: Tensor,
    *,
    wrap: Wrap = as_is,
) -> None:
    """Run `mainboard::merge_attention_states`.

    Raises:
        TypeError: a dtype that is not served.
        ValueError: shapes, strides or devices that do not fit together.
    """
    validate.merge_attention_states(out, out_lse, a, a_lse, b, b_lse)
    tokens, heads, dim = out.shape
    if out.numel() == 0:
        return
    pad = padded(dim)
    rows = max(1, 1024 // pad)
    strides = [x.stride()[:2] for x in (out, a, b)]
    strides += [(0, 0) if x is None else x.stride() for x in (out_lse, a_lse, b_lse)]
    numbers = (tokens, *(one for pair in strides for one in pair), dim, pad, rows)
    Launch(merge_kernel, (-(-tokens // rows), heads), numbers, {"num_warps": 4}).first(
        out, out_lse, a, a_lse, b, b_lse, wrap=wrap
    )

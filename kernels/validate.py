"""Checks on operator arguments, made on the host and without touching device memory.

Each raises `TypeError` for what has the wrong kind and `ValueError` for the wrong size, naming the
argument, what it is and what was expected. The reference and the fake kernels call them. Compiled
kernels make the same checks themselves, in nanoseconds (csrc/common/arguments.h); when one refuses,
the public call comes here for the words.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

QUERY_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
FP8_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)
FNUZ_DTYPES = (torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)  # of AMD's gfx942
BYTE_DTYPES = (*FP8_DTYPES, torch.int8)  # of a cache under wider queries, with its scales
PAGE_MULTIPLE = 16


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _wrong_shape(name: str, x: Tensor, expected: str) -> ValueError:
    return ValueError(f"{name} has shape {tuple(x.shape)}; expected {expected}")


def _rows(name: str, x: Tensor, dims: int, layout: str) -> None:
    """`x` has `dims` dimensions and a contiguous last one."""
    if x.dim() != dims:
        raise _wrong_shape(name, x, layout)
    if x.stride(-1) != 1 and x.shape[-1] > 1:
        raise ValueError(
            f"{name} has stride {x.stride(-1)} in its last dimension; expected 1: "
            f"call .contiguous() on it"
        )


def _like(name: str, x: Tensor, like: Tensor) -> None:
    if x.device != like.device:
        raise ValueError(f"{name} is on {x.device}; expected {like.device}, where q is")


def _indices(name: str, x: Tensor, shape: tuple[int | None, ...], like: Tensor) -> None:
    """An int32 tensor of lengths, offsets or pages, on the device of `like`."""
    if x.dtype != torch.int32:
        raise TypeError(f"{name} has dtype {_name(x.dtype)}; expected int32")
    if x.dim() != len(shape) or any(
        want is not None and got != want for got, want in zip(x.shape, shape, strict=True)
    ):
        sizes = ", ".join("any" if size is None else str(size) for size in shape)
        raise _wrong_shape(name, x, f"[{sizes}]")
    if x.numel() and x.stride(-1) != 1:
        raise ValueError(f"{name} is not contiguous in its last dimension; call .contiguous()")
    _like(name, x, like)


def _per_head(name: str, x: Tensor | None, sizes: tuple[int, ...], like: Tensor) -> None:
    """A contiguous float32 vector of one of `sizes`, or None."""
    if x is None:
        return
    if x.dtype != torch.float32:
        raise TypeError(f"{name} has dtype {_name(x.dtype)}; expected float32")
    if x.dim() != 1 or x.shape[0] not in sizes:
        raise _wrong_shape(name, x, " or ".join(f"[{size}]" for size in dict.fromkeys(sizes)))
    if not x.is_contiguous():
        raise ValueError(f"{name} is not contiguous; call .contiguous()")
    _like(name, x, like)


def _flags(name: str, x: Tensor, batch: int, like: Tensor) -> None:
    """True or False for each sequence, on the device of `like`."""
    if x.dtype != torch.bool:
        raise TypeError(f"{name} has dtype {_name(x.dtype)}; expected bool, one for each sequence")
    if x.dim() != 1 or x.shape[0] != batch:
        raise _wrong_shape(name, x, f"[{batch}], one for each sequence")
    if not x.is_contiguous():
        raise ValueError(f"{name} is not contiguous; call .contiguous()")
    _like(name, x, like)


def _cache_dtype(name: str, x: Tensor, q: Tensor) -> None:
    if x.dtype != q.dtype and x.dtype not in BYTE_DTYPES + FNUZ_DTYPES:
        raise TypeError(
            f"{name} has dtype {_name(x.dtype)}; expected q's {_name(q.dtype)}, "
            f"or a cache of one byte ({', '.join(map(_name, BYTE_DTYPES))})"
        )


def _page_size(name: str, cache: Tensor) -> None:
    if cache.shape[1] == 0 or cache.shape[1] % PAGE_MULTIPLE:
        raise ValueError(
            f"{name} has pages of {cache.shape[1]} slots; expected a multiple of {PAGE_MULTIPLE}"
        )


def _keys_and_values(q: Tensor, k: Tensor, v: Tensor, paged: bool) -> None:
    layout = "[pages, page_size, kv_heads, dim]" if paged else "[tokens, kv_heads, dim]"
    for name, x in (("k", k), ("v", v)):
        _rows(name, x, 4 if paged else 3, layout)
        _like(name, x, q)
        _cache_dtype(name, x, q)
        if paged:
            _page_size(name, x)
    if k.dtype != v.dtype:
        raise TypeError(f"v has dtype {_name(v.dtype)}; expected k's {_name(k.dtype)}")
    if k.shape[:-1] != v.shape[:-1]:
        raise _wrong_shape("v", v, f"{(*k.shape[:-1], 'dim')} beside k")
    if k.shape[-1] != q.shape[-1]:
        raise _wrong_shape("k", k, f"a last dimension of {q.shape[-1]}, as q has")
    heads, kv_heads = q.shape[1], k.shape[-2]
    if heads == 0 or kv_heads == 0 or heads % kv_heads:
        raise ValueError(f"q has {heads} heads and k has {kv_heads}; expected a multiple of k's")


def _outputs(q: Tensor, v: Tensor, out: Tensor, lse: Tensor | None) -> None:
    _rows("out", out, 3, "[tokens, heads, value dim]")
    if tuple(out.shape) != (q.shape[0], q.shape[1], v.shape[-1]):
        raise _wrong_shape("out", out, f"[{q.shape[0]}, {q.shape[1]}, {v.shape[-1]}]")
    if out.dtype != q.dtype:
        raise TypeError(f"out has dtype {_name(out.dtype)}; expected q's {_name(q.dtype)}")
    _like("out", out, q)
    if lse is None:
        return
    if lse.dtype != torch.float32:
        raise TypeError(f"lse has dtype {_name(lse.dtype)}; expected float32")
    if tuple(lse.shape) != (q.shape[1], q.shape[0]) or (lse.numel() and lse.stride(1) != 1):
        raise _wrong_shape("lse", lse, f"[{q.shape[1]}, {q.shape[0]}], contiguous")
    _like("lse", lse, q)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor | None,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor | None,
    seqused_k: Tensor | None,
    block_table: Tensor | None,
    max_seqlen_q: int,
    max_seqlen_k: int,
    softmax_scale: float,
    causal: bool,
    window_left: int,
    window_right: int,
    softcap: float,
    alibi_slopes: Tensor | None,
    sinks: Tensor | None,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    deterministic: bool,
    causal_flags: Tensor | None = None,
) -> None:
    """Check the arguments of `torch.ops.mainboard.attention`.

    Raises:
        TypeError: a dtype that is not served.
        ValueError: shapes, strides or devices that do not fit together.
    """
    _rows("q", q, 3, "[tokens, heads, head_dim]")
    if q.dtype not in QUERY_DTYPES:
        raise TypeError(
            f"q has dtype {_name(q.dtype)}; expected {', '.join(map(_name, QUERY_DTYPES))}"
        )
    _keys_and_values(q, k, v, block_table is not None)
    _outputs(q, v, out, lse)
    _indices("cu_seqlens_q", cu_seqlens_q, (None,), q)
    if cu_seqlens_q.shape[0] < 1:
        raise _wrong_shape("cu_seqlens_q", cu_seqlens_q, "[sequences + 1]")
    batch = cu_seqlens_q.shape[0] - 1
    if cu_seqlens_k is None and seqused_k is None:
        raise ValueError("the keys' lengths are missing: give cu_seqlens_k or seqused_k")
    if cu_seqlens_k is None and block_table is None:
        raise ValueError("k and v are dense: give cu_seqlens_k, where each sequence begins")
    if cu_seqlens_k is not None:
        _indices("cu_seqlens_k", cu_seqlens_k, (batch + 1,), q)
    if seqused_k is not None:
        _indices("seqused_k", seqused_k, (batch,), q)
    if block_table is not None:
        _indices("block_table", block_table, (batch, None), q)
    if window_left < -1 or window_right < -1:
        raise ValueError(f"window is {(window_left, window_right)}; expected each -1 or more")
    if not softcap >= 0.0:
        raise ValueError(f"softcap is {softcap}; expected 0 (off) or more")
    _per_head("alibi_slopes", alibi_slopes, (q.shape[1],), q)
    _per_head("sinks", sinks, (q.shape[1],), q)
    _per_head("k_scale", k_scale, (1, k.shape[-2]), q)
    _per_head("v_scale", v_scale, (1, k.shape[-2]), q)
    if causal_flags is not None:
        _flags("causal", causal_flags, batch, q)


def _slots(slot_mapping: Tensor, tokens: int) -> None:
    if slot_mapping.dtype != torch.int64:
        raise TypeError(f"slot_mapping has dtype {_name(slot_mapping.dtype)}; expected int64")
    if slot_mapping.dim() != 1 or slot_mapping.shape[0] > tokens:
        raise _wrong_shape("slot_mapping", slot_mapping, f"[at most {tokens} tokens]")
    if not slot_mapping.is_contiguous():
        raise ValueError("slot_mapping is not contiguous; call .contiguous()")


def reshape_and_cache(
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
) -> None:
    """Check the arguments of `torch.ops.mainboard.reshape_and_cache`.

    Raises:
        TypeError: a dtype that is not served.
        ValueError: shapes, strides or devices that do not fit together.
    """
    pairs = (("key", key, "key_cache", key_cache), ("value", value, "value_cache", value_cache))
    for name, x, cache_name, cache in pairs:
        _rows(name, x, 3, "[tokens, kv_heads, dim]")
        _rows(cache_name, cache, 4, "[pages, page_size, kv_heads, dim]")
        if x.dtype not in QUERY_DTYPES:
            raise TypeError(
                f"{name} has dtype {_name(x.dtype)}; expected {', '.join(map(_name, QUERY_DTYPES))}"
            )
        _cache_dtype(cache_name, cache, x)
        _page_size(cache_name, cache)
        if cache.shape[2:] != x.shape[1:]:
            raise _wrong_shape(cache_name, cache, f"[pages, page_size, {x.shape[1]}, {x.shape[2]}]")
        for other_name, other in ((name, x), (cache_name, cache)):
            if other.device != key.device:
                raise ValueError(f"{other_name} is on {other.device}; expected {key.device}")
    if key_cache.shape[:3] != value_cache.shape[:3]:
        raise _wrong_shape("value_cache", value_cache, f"{(*key_cache.shape[:3], 'dim')}")
    _slots(slot_mapping, min(key.shape[0], value.shape[0]))
    heads = key.shape[1]
    _per_head("k_scale", k_scale, (1, heads), key)
    _per_head("v_scale", v_scale, (1, heads), key)


def merge_attention_states(
    out: Tensor, out_lse: Tensor | None, a: Tensor, a_lse: Tensor, b: Tensor, b_lse: Tensor
) -> None:
    """Check the arguments of `torch.ops.mainboard.merge_attention_states`.

    Raises:
        TypeError: a dtype that is not served, or that differs between a, b and out.
        ValueError: shapes, strides or devices that do not fit together.
    """
    if a.dtype not in QUERY_DTYPES:
        raise TypeError(
            f"a has dtype {_name(a.dtype)}; expected {', '.join(map(_name, QUERY_DTYPES))}"
        )
    for name, x in (("a", a), ("b", b), ("out", out)):
        _rows(name, x, 3, "[tokens, heads, dim]")
        if x.shape != a.shape:
            raise _wrong_shape(name, x, f"{tuple(a.shape)}, as a has")
        if x.dtype != a.dtype:
            raise TypeError(f"{name} has dtype {_name(x.dtype)}; expected a's {_name(a.dtype)}")
    expected = (a.shape[1], a.shape[0])
    for name, lse in (("a_lse", a_lse), ("b_lse", b_lse), ("out_lse", out_lse)):
        if lse is None:
            continue
        if lse.dtype != torch.float32:
            raise TypeError(f"{name} has dtype {_name(lse.dtype)}; expected float32")
        if tuple(lse.shape) != expected:
            raise _wrong_shape(name, lse, f"{expected}, [heads, tokens]")
    for name, other in (("b", b), ("out", out), ("a_lse", a_lse), ("b_lse", b_lse)):
        if other.device != a.device:
            raise ValueError(f"{name} is on {other.device}; expected {a.device}, where a is")


def mla_decode(
    q: Tensor,
    kv_cache: Tensor,
    out: Tensor,
    lse: Tensor | None,
    cu_seqlens_q: Tensor,
    seqused_k: Tensor,
    block_table: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    softmax_scale: float,
    causal: bool,
    kv_scale: Tensor | None,
    deterministic: bool,
) -> None:
    """Check the arguments of `torch.ops.mainboard.mla_decode`.

    Raises:
        TypeError: a dtype that is not served.
        ValueError: shapes, strides or devices that do not fit together.
    """
    _rows("kv_cache", kv_cache, 3, "[pages, page_size, latent + rotary]")
    _rows("out", out, 3, "[tokens, heads, latent]")
    if not 0 < out.shape[-1] <= kv_cache.shape[-1]:
        raise _wrong_shape("out", out, f"a last dimension of at most {kv_cache.shape[-1]}")
    keys = kv_cache.unsqueeze(2)
    attention(
        q, keys, keys[..., : out.shape[-1]], out, lse, cu_seqlens_q, None, seqused_k, block_table,
        max_seqlen_q, max_seqlen_k, softmax_scale, causal, -1, -1, 0.0, None, None, kv_scale,
        kv_scale, deterministic,
    )  # fmt: skip


def concat_and_cache_mla(
    kv_c: Tensor, k_pe: Tensor, kv_cache: Tensor, slot_mapping: Tensor, kv_scale: Tensor | None
) -> None:
    """Check the arguments of `torch.ops.mainboard.concat_and_cache_mla`.

    Raises:
        TypeError: a dtype that is not served.
        ValueError: shapes, strides or devices that do not fit together.
    """
    for name, x in (("kv_c", kv_c), ("k_pe", k_pe)):
        _rows(name, x, 2, "[tokens, dim]")
        if x.dtype not in QUERY_DTYPES:
            raise TypeError(
                f"{name} has dtype {_name(x.dtype)}; expected {', '.join(map(_name, QUERY_DTYPES))}"
            )
    if k_pe.dtype != kv_c.dtype:
        raise TypeError(f"k_pe has dtype {_name(k_pe.dtype)}; expected kv_c's {_name(kv_c.dtype)}")
    _rows("kv_cache", kv_cache, 3, "[pages, page_size, latent + rotary]")
    width = kv_c.shape[-1] + k_pe.shape[-1]
    if kv_cache.shape[-1] != width:
        raise _wrong_shape("kv_cache", kv_cache, f"[pages, page_size, {width}]")
    _cache_dtype("kv_cache", kv_cache, kv_c)
    _page_size("kv_cache", kv_cache)
    _slots(slot_mapping, min(kv_c.shape[0], k_pe.shape[0]))
    for name, x in (("k_pe", k_pe), ("kv_cache", kv_cache), ("slot_mapping", slot_mapping)):
        if x.device != kv_c.device:
            raise ValueError(f"{name} is on {x.device}; expected {kv_c.device}, where kv_c is")
    _per_head("kv_scale", kv_scale, (1,), kv_c)


def _dense_pages(name: str, cache: Tensor) -> None:
    """`cache` is pages whose elements lie together, in any order of the dimensions."""
    if cache.dim() < 2:
        raise _wrong_shape(name, cache, "[pages, ...]")
    together = 1
    for stride, size in sorted(zip(cache.stride()[1:], cache.shape[1:], strict=True)):
        if size > 1 and stride != together:
            raise ValueError(f"{name} has strides {cache.stride()}; expected each page dense")
        together *= size
    if cache.shape[0] > 1 and cache.stride(0) < together:
        raise ValueError(f"{name} has strides {cache.stride()}; expected pages that do not overlap")


def _pairs(block_mapping: Tensor, device: torch.device, why: str) -> None:
    if block_mapping.dtype != torch.int64:
        raise TypeError(f"block_mapping has dtype {_name(block_mapping.dtype)}; expected int64")
    if block_mapping.dim() != 2 or block_mapping.shape[1] != 2:
        raise _wrong_shape("block_mapping", block_mapping, "[pairs, 2]")
    if not block_mapping.is_contiguous():
        raise ValueError("block_mapping is not contiguous; call .contiguous()")
    if block_mapping.device != device:
        raise ValueError(f"block_mapping is on {block_mapping.device}; expected {device}, {why}")


def copy_blocks(caches: Sequence[Tensor], block_mapping: Tensor) -> None:
    """Check the arguments of `torch.ops.mainboard.copy_blocks`.

    Raises:
        TypeError: a mapping that is not int64.
        ValueError: shapes, strides or devices that do not fit together.
    """
    if not caches:
        raise ValueError("caches is empty; expected at least one")
    for i, cache in enumerate(caches):
        _dense_pages(f"caches[{i}]", cache)
        if cache.device != caches[0].device:
            raise ValueError(
                f"caches[{i}] is on {cache.device}; expected {caches[0].device}, where the first is"
            )
    _pairs(block_mapping, caches[0].device, "where the caches are")


def swap_blocks(src: Tensor, dst: Tensor, block_mapping: Tensor) -> None:
    """Check the arguments of `torch.ops.mainboard.swap_blocks`.

    Raises:
        TypeError: dtypes that differ, or a mapping that is not int64.
        ValueError: shapes, strides or devices that do not fit together, or pages out of range.
    """
    _dense_pages("src", src)
    _dense_pages("dst", dst)
    if dst.dtype != src.dtype:
        raise TypeError(f"dst has dtype {_name(dst.dtype)}; expected src's {_name(src.dtype)}")
    if dst.shape[1:] != src.shape[1:] or dst.stride()[1:] != src.stride()[1:]:
        raise ValueError(
            f"dst has pages of shape {tuple(dst.shape[1:])} and strides {dst.stride()[1:]}; "
            f"expected src's {tuple(src.shape[1:])} and {src.stride()[1:]}"
        )
    _pairs(block_mapping, torch.device("cpu"), "because the host starts the copies")
    if block_mapping.is_meta or type(block_mapping) is not Tensor:
        return  # a fake tensor has no values
    for column, (name, cache) in enumerate((("src", src), ("dst", dst))):
        for i, page in enumerate(block_mapping[:, column].tolist()):
            if not 0 <= page < cache.shape[0]:
                raise ValueError(
                    f"block_mapping[{i}, {column}] is {page}; expected a page of {name}, "
                    f"0 to {cache.shape[0] - 1}"
                )

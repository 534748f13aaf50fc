"""Latent attention and its cache: the public calls against their meaning."""

import pytest
import torch

from mainboard.kernels import attention, concat_and_cache_mla, mla_decode, reference

LATENT, ROTARY = 512, 64


def drawn(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries of three sequences, a cache of 8 pages, and the lengths."""
    torch.manual_seed(4)
    q = torch.randn(6, 4, LATENT + ROTARY).to(dtype)
    cache = torch.randn(8, 16, LATENT + ROTARY).to(dtype)
    return q, cache, torch.tensor([40, 0, 17], dtype=torch.int32)


TABLE = torch.tensor([[5, 2, 7], [9, 9, 9], [0, 3, -1]], dtype=torch.int32)
OFFSETS = torch.tensor([0, 2, 5, 6], dtype=torch.int32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_latent_attention_is_attention_over_rows(dtype: torch.dtype) -> None:
    """Each row is the key of every head, and its front the value."""
    q, cache, used = drawn(dtype)
    out, lse = mla_decode(
        q, cache, cu_seqlens_q=OFFSETS, seqused_k=used, block_table=TABLE, max_seqlen_q=3,
        max_seqlen_k=40, softmax_scale=0.07, return_lse=True,
    )  # fmt: skip
    keys = torch.cat([cache[[5, 2, 7]].flatten(0, 1)[:40], cache[[0, 3]].flatten(0, 1)[:17]])
    keys = keys.float()[:, None]
    want, want_lse = attention(
        q.float(), keys, keys[..., :LATENT].contiguous(), cu_seqlens_q=OFFSETS,
        cu_seqlens_k=torch.tensor([0, 40, 40, 57]).int(), max_seqlen_q=3, max_seqlen_k=40,
        softmax_scale=0.07, return_lse=True,
    )  # fmt: skip
    tolerance = {torch.float32: 1e-4, torch.bfloat16: 1e-2}[dtype]
    torch.testing.assert_close(out.float(), want, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(lse, want_lse, rtol=1e-4, atol=1e-4)
    assert torch.equal(out[2:5], torch.zeros_like(out[2:5]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("cache_dtype", [None, torch.float8_e4m3fn, torch.float8_e5m2, torch.int8])
@pytest.mark.parametrize("heads", [1, 16, 40, 128])
def test_latent_attention_is_right_in_float64(
    dtype: torch.dtype, cache_dtype: torch.dtype | None, heads: int
) -> None:
    """Any number of heads and every kind of cache, over lengths that end inside a page."""
    torch.manual_seed(heads)
    used = torch.tensor([333, 0, 17], dtype=torch.int32)
    table = torch.full((3, 23), -7, dtype=torch.int32)
    table[0, :21], table[2, :2] = torch.randperm(23)[:21].int(), torch.tensor([4, 9]).int()
    q = torch.randn(6, heads, LATENT + ROTARY).to(dtype)
    cache = torch.randn(23, 16, LATENT + ROTARY)
    scale = None if cache_dtype is None else torch.tensor([0.7])
    if cache_dtype is torch.int8:
        cache, scale = cache * 40, torch.tensor([1 / 40])
    cache = cache.to(cache_dtype or dtype)
    options = {
        "cu_seqlens_q": OFFSETS, "seqused_k": used, "block_table": table, "max_seqlen_q": 3,
        "max_seqlen_k": 333, "softmax_scale": 0.05, "causal": True,
    }  # fmt: skip
    out, lse = mla_decode(q, cache, value_dim=LATENT, kv_scale=scale, return_lse=True, **options)
    want, want_lse = torch.zeros_like(out).double(), torch.zeros_like(lse).double()
    reference.mla_decode(
        q, cache, want, want_lse, *options.values(), scale, False, precision=torch.float64
    )
    bound = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    assert (out.double() - want).norm() <= bound * want.norm()
    torch.testing.assert_close(lse.double(), want_lse, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("cache_dtype", [None, torch.float8_e4m3fn, torch.int8])
def test_latent_rows_are_written_side_by_side(cache_dtype: torch.dtype | None) -> None:
    """A row holds the latent and then the rotary part, over its scale; slot -1 is skipped."""
    latent, rotary = (torch.randn(3, size) * 20 for size in (LATENT, ROTARY))
    cache = torch.zeros(2, 16, LATENT + ROTARY).to(cache_dtype or torch.float32)
    scale = None if cache_dtype is None else 2.0
    concat_and_cache_mla(latent, rotary, cache, torch.tensor([17, -1, 4]), kv_scale=scale)
    rows = torch.cat([latent, rotary], dim=-1) / (scale or 1.0)
    flat = cache.flatten(0, 1).float()
    if cache_dtype is torch.int8:
        rows = rows.round()
    assert torch.equal(flat[17], rows[0].to(cache.dtype).float())
    assert torch.equal(flat[4], rows[2].to(cache.dtype).float())
    assert flat.count_nonzero(dim=1).count_nonzero() == 2


def test_a_wrong_slot_of_a_latent_cache_is_named() -> None:
    """A slot past the cache is refused with its index and the range."""
    parts = torch.zeros(3, LATENT), torch.zeros(3, ROTARY)
    slots = torch.tensor([0, 32, 1])
    with pytest.raises(
        Exception, match=r"slot_mapping\[1\] is 32; expected -1 to skip, or 0 to 31"
    ):
        concat_and_cache_mla(*parts, torch.zeros(2, 16, LATENT + ROTARY), slots)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"value_dim": 600}, ValueError, "out has shape"),
        ({"seqused_k": torch.zeros(3)}, TypeError, "seqused_k has dtype float32; expected int32"),
        ({"kv_scale": torch.ones(4)}, ValueError, "k_scale has shape"),
    ],
)
def test_bad_latent_input_is_refused(
    change: dict[str, object], error: type[Exception], message: str
) -> None:
    """A refusal names the argument, what it is and what was expected."""
    q, cache, used = drawn(torch.float32)
    options = {"seqused_k": used, "block_table": TABLE} | change
    with pytest.raises(error, match=message):
        mla_decode(
            q, cache, cu_seqlens_q=OFFSETS, max_seqlen_q=3, max_seqlen_k=40, softmax_scale=1.0,
            **options,
        )  # fmt: skip


def test_bad_latent_cache_is_refused() -> None:
    """A cache of another width is refused with the width that was expected."""
    parts = torch.zeros(3, LATENT), torch.zeros(3, ROTARY)
    with pytest.raises(ValueError, match=r"kv_cache has shape .* expected \[pages, page_size, 576"):
        concat_and_cache_mla(*parts, torch.zeros(2, 16, 512), torch.arange(3))

"""reshape_and_cache and merge_attention_states against their meaning."""

import pytest
import torch

from mainboard.kernels import attention, merge_attention_states, reference, reshape_and_cache
from mainboard.kernels.backends.cpu import CpuAttentionBackend
from mainboard.testing.attention_cases import RELATIVE, AttentionCase, assert_close

FP8 = [torch.float8_e4m3fn, torch.float8_e5m2]


def bytes_of(x: torch.Tensor) -> torch.Tensor:
    """What is stored, NaN included."""
    return x.contiguous().view(torch.uint8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("cache_dtype", [None, *FP8, torch.int8])
@pytest.mark.parametrize("backend_layout", [False, True])
def test_cache_holds_what_the_reference_holds(
    dtype: torch.dtype, cache_dtype: torch.dtype | None, backend_layout: bool
) -> None:
    """Every format and layout gets the reference's bytes; slot -1 and other slots stay."""
    torch.manual_seed(1)
    stored = cache_dtype or dtype
    key, value = torch.randn(2, 40, 3, 72).to(dtype).unbind(0)
    key[3, 1, :4] = torch.tensor([float("nan"), 1e9, -1e9, 0.0]).to(dtype)
    shape = CpuAttentionBackend.get_kv_cache_shape(6, 16, 3, 72)
    kv = (torch.randn(shape) * 40).to(stored)
    pair = CpuAttentionBackend.split_kv_cache(kv)
    if not backend_layout:
        pair = tuple(x.contiguous() for x in pair)
    slots = (48 + torch.randperm(3 * 16 + 20)[:40]) % (6 * 16)
    slots[8:36] = torch.arange(20, 48)  # a run, over the end of a page
    slots[[0, 17]] = -1
    scales = {}
    if cache_dtype is not None:
        scales = {"k_scale": torch.rand(3) + 0.5, "v_scale": 0.25}
    expected = [x.clone() for x in pair]
    reference.reshape_and_cache(
        key, value, *expected, slots,
        scales.get("k_scale"), torch.tensor([0.25]) if scales else None,
    )  # fmt: skip
    reshape_and_cache(key, value, *pair, slots, **scales)
    for got, want in zip(pair, expected, strict=True):
        assert torch.equal(bytes_of(got), bytes_of(want))


@pytest.mark.parametrize("cache_dtype", FP8)
def test_every_bfloat16_rounds_to_fp8_as_torch_does(cache_dtype: torch.dtype) -> None:
    """All 65,536 bfloat16 values are stored as torch stores them after saturation."""
    values = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)
    key = values.view(-1, 1, 64)
    caches = [torch.zeros(64, 16, 1, 64).to(cache_dtype) for _ in range(2)]
    reshape_and_cache(key, key, *caches, torch.arange(1024))
    limit = reference.FP8_LIMITS[cache_dtype]
    want = values.float().clamp(-limit, limit).to(cache_dtype)
    got = caches[0].flatten()
    nan = want.float().isnan()
    assert torch.equal(got.float().isnan(), nan)
    assert torch.equal(got.view(torch.uint8)[~nan], want.view(torch.uint8)[~nan])


def test_int8_rounds_to_even_and_saturates() -> None:
    """Halves go to the even neighbour, what is too large to the end of the range, NaN to 0."""
    row = torch.tensor([0.5, 1.5, -0.5, -1.5, 2.5, 126.5, 127.5, 1e9, -128.5, -1e9, 0.49, -2.5])
    key = torch.cat([row, torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0])])
    caches = [torch.zeros(1, 16, 1, 16, dtype=torch.int8) for _ in range(2)]
    reshape_and_cache(key.view(1, 1, 16), key.view(1, 1, 16), *caches, torch.tensor([3]))
    want = [0, 2, 0, -2, 2, 126, 127, 127, -128, -128, 0, -2, 0, 127, -128, 0]
    assert caches[0][0, 3, 0].tolist() == want


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_written_pages_are_what_attention_reads(dtype: torch.dtype) -> None:
    """Keys written by slot and read by block table give dense attention."""
    torch.manual_seed(2)
    case = AttentionCase((7, 1), (33, 50), dtype=dtype, head_dim=80)
    given = case.inputs()
    kv = torch.full(CpuAttentionBackend.get_kv_cache_shape(8, 32, 2, 80), float("nan")).to(dtype)
    caches = CpuAttentionBackend.split_kv_cache(kv)
    table = torch.tensor([[5, 2], [0, 7]], dtype=torch.int32)
    slots = torch.cat(
        [
            (table[i].long()[:, None] * 32 + torch.arange(32)).flatten()[:n]
            for i, n in ((0, 33), (1, 50))
        ]
    )
    reshape_and_cache(given.k, given.v, *caches, slots)
    options = dict(given.options)
    options.pop("cu_seqlens_k")
    out = attention(
        given.q, *caches, block_table=table, seqused_k=torch.tensor([33, 50]).int(), **options
    )
    extra = None
    if case.rounds_weights("cpu"):
        extra = RELATIVE[dtype] * case.weighed_magnitude(given)
    assert_close(out, case.expected(given)[0], case, extra=extra)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_merge_is_attention_over_both(dtype: torch.dtype) -> None:
    """Attention over two halves of the keys, merged, is attention over all."""
    case = AttentionCase((9,), (100,), dtype=dtype, causal=False)
    given = case.inputs()
    parts = []
    for begin, end in ((0, 37), (37, 100)):
        options = dict(given.options) | {"cu_seqlens_k": torch.tensor([0, end - begin]).int()}
        parts += attention(
            given.q, given.k[begin:end], given.v[begin:end], return_lse=True, **options
        )
    out, lse = merge_attention_states(*parts)
    expected, expected_lse = case.expected(given)
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)
    assert_close(lse, expected_lse, case, "lse")


def test_merge_does_not_read_an_empty_part() -> None:
    """A part whose log-sum-exp is -inf may hold NaN; two of them give zeros."""
    a, lse = torch.randn(4, 2, 40), torch.randn(2, 4)
    nan, nothing = torch.full_like(a, float("nan")), torch.full_like(lse, float("-inf"))
    out, merged = merge_attention_states(a, lse, nan, nothing)
    torch.testing.assert_close(out, a)
    torch.testing.assert_close(merged, lse)
    out, merged = merge_attention_states(nan, nothing, nan, nothing)
    assert torch.equal(out, torch.zeros_like(a))
    assert torch.equal(merged, nothing)


@pytest.mark.parametrize("heads", [1, 3, 16, 21])
@pytest.mark.parametrize("dim", [8, 40, 128])
def test_merge_is_the_references(heads: int, dim: int) -> None:
    """Any number of heads and any dimension, with parts that outweigh each other by any factor."""
    a, b = torch.randn(2, 5, heads, dim).unbind(0)
    a_lse, b_lse = (torch.randn(2, heads, 5) * 30).unbind(0)
    a_lse[0, 1] = b_lse[0, 2] = float("-inf")
    b[2, 0] = a[1, 0] = float("nan")
    want, want_lse = torch.empty_like(a), torch.empty_like(a_lse)
    reference.merge_attention_states(want, want_lse, a, a_lse, b, b_lse)
    got, got_lse = merge_attention_states(a, a_lse, b, b_lse)
    torch.testing.assert_close(got, want, rtol=2e-6, atol=1e-6)
    torch.testing.assert_close(got_lse, want_lse, rtol=1e-6, atol=1e-6)


def test_merge_in_place() -> None:
    """`out` may be one of the parts, as a running result is."""
    a, b = torch.randn(2, 4, 2, 64).unbind(0)
    a_lse, b_lse = torch.randn(2, 2, 4).unbind(0)
    want, want_lse = merge_attention_states(a, a_lse, b, b_lse)
    got, got_lse = merge_attention_states(a, a_lse, b, b_lse, out=a, out_lse=a_lse)
    assert got is a and torch.equal(a, want) and torch.equal(got_lse, want_lse)

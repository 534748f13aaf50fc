"""The kernels that serve a GPU, on it: every required case, drawn ones, and what needs a device."""

from dataclasses import replace

import pytest
import torch

from mainboard.errors import UnsupportedConfigurationError
from mainboard.kernels import (
    attention,
    concat_and_cache_mla,
    copy_blocks,
    merge_attention_states,
    mla_decode,
    reference,
    reshape_and_cache,
    swap_blocks,
    warm_up,
)
from mainboard.kernels.support import choose
from mainboard.kernels.validate import FP8_DTYPES
from mainboard.testing.attention_cases import AttentionCase, assert_close, check_case, draw_case
from mainboard.testing.attention_list import REQUIRED

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]


_FLAGS = AttentionCase((513, 1, 300, 3, 70, 4), (700, 5000, 900, 2000, 70, 4), 32, 8, 128,
                       dtype=torch.bfloat16, page_size=16,
                       causal=(False, True, True, False, False, False))  # fmt: skip
FLAGGED = (
    _FLAGS,
    replace(_FLAGS, page_size=None, head_dim=64, dtype=torch.float16),
    replace(_FLAGS, window=(200, 30), sinks=True, head_dim=64),
    replace(_FLAGS, window=(100, -1), alibi=True, softcap=30.0),
    replace(_FLAGS, cache_dtype=torch.float8_e4m3fn, scaled_cache=True),
    replace(_FLAGS, deterministic=True),
    replace(_FLAGS, queries=(4, 1, 4, 3, 2, 4), page_size=64),  # decode alone
    replace(_FLAGS, queries=(5, 1, 3, 3, 2, 4), heads=8, head_dim=64, window=(300, 2), sinks=True),
    replace(_FLAGS, queries=(8, 2), keys=(20000, 30000), heads=8, causal=(False, True)),
    replace(_FLAGS, queries=(300,) * 40, keys=(300,) * 40, causal=(True, False) * 20, heads=8),
)


def check_served(case: AttentionCase) -> None:
    """Check a case, unless `MAINBOARD_KERNELS` forces a level that does not serve it."""
    try:
        choose(case.request(device="cuda"))
    except UnsupportedConfigurationError as error:
        pytest.skip("; ".join(error.reasons))
    check_case(case, "cuda")


@pytest.mark.parametrize("name", REQUIRED)
def test_required_case(name: str) -> None:
    """A required case agrees with the float64 reference."""
    check_served(REQUIRED[name])


@pytest.mark.parametrize("seed", range(160))
def test_drawn_case(seed: int) -> None:
    """A drawn case agrees with the float64 reference."""
    check_served(draw_case(seed))


@pytest.mark.parametrize(
    "case",
    [
        AttentionCase((1,) * 8, (1500,) * 8, 32, 8, 128, dtype=torch.bfloat16, page_size=16),
        AttentionCase((1,), (33000,), 32, 8, 128, dtype=torch.bfloat16, page_size=64),
        AttentionCase((4, 1, 4), (900, 5000, 12), 64, 8, 64, dtype=torch.float16, page_size=32),
        AttentionCase((700, 300), (700, 1300), 16, 4, 128, dtype=torch.bfloat16),
        AttentionCase((700,), (700,), 8, 2, 64, dtype=torch.bfloat16, causal=False),
        AttentionCase((400, 1, 90), (400, 2000, 1000), 8, 2, 256, dtype=torch.bfloat16),
        AttentionCase((300, 500), (900, 700), 8, 1, 128, dtype=torch.bfloat16, page_size=16,
                      window=(128, -1), sinks=True, softcap=30.0),
        AttentionCase((600, 90), (600, 1300), 16, 4, 64, dtype=torch.bfloat16, page_size=16,
                      cache_dtype=torch.float8_e4m3fn),
        AttentionCase((300, 1, 2), (900, 3000, 40), 16, 4, 128, dtype=torch.float16, page_size=32,
                      cache_dtype=torch.float8_e5m2),
        AttentionCase((200,), (1000,), 8, 2, 256, dtype=torch.bfloat16, page_size=16,
                      cache_dtype=torch.float8_e4m3fn, alibi=True),
        AttentionCase((700, 90), (1500, 90), 8, 2, 128, dtype=torch.bfloat16, alibi=True),
        AttentionCase((400,), (1100,), 8, 2, 64, dtype=torch.float16, alibi=True, causal=False),
        AttentionCase((300,), (900,), 8, 2, 128, dtype=torch.bfloat16, page_size=64,
                      cache_dtype=torch.float8_e4m3fn, scaled_cache=True, softcap=20.0),
        AttentionCase((513, 1, 1, 3, 1, 0, 70), (700, 5000, 90, 2000, 1, 8, 70), 32, 8, 128,
                      dtype=torch.bfloat16, page_size=16),
        *FLAGGED,
    ],
    ids=str,
)  # fmt: skip
def test_larger_case(case: AttentionCase) -> None:
    """Shapes that take several tiles and shares of the keys agree with the float64 reference."""
    check_case(case, "cuda")


@pytest.mark.parametrize("bound", [1200, 1 << 20])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_short_call_under_any_bound(head_dim: int, bound: int) -> None:
    """How long sequences could be changes who joins their parts, not what comes out."""
    case = AttentionCase(
        (1, 4, 0, 1), (1200, 37, 5, 640), 8, 2, head_dim, dtype=torch.bfloat16, page_size=16
    )
    given = case.inputs("cuda")
    options = given.options | {"max_seqlen_k": bound}
    out, lse = attention(given.q, given.k, given.v, return_lse=True, **options)
    expected, expected_lse = case.expected(given)
    assert_close(out, expected, case, extra=2.0**-8 * case.weighed_magnitude(given))
    assert_close(lse, expected_lse, case, "lse")


def test_softcap_of_huge_scores() -> None:
    """Scores beyond 10,000 are capped without overflow."""
    case = AttentionCase((40, 1), (80, 300), dtype=torch.bfloat16, softcap=30.0)
    given = case.inputs("cuda")
    given.q *= 4000
    out, lse = attention(given.q, given.k, given.v, return_lse=True, **given.options)
    expected, expected_lse = case.expected(given)
    extra = 2.0**-8 * case.weighed_magnitude(given)
    assert ((out.double() - expected).abs() <= extra + 2.0**-7 * expected.abs() + 1e-3).all()
    torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("gain", [1, 6, 30])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_softcap_below_and_beyond(head_dim: int, gain: int) -> None:
    """Capping is as exact for scores far below the cap as for some, or most, beyond it."""
    case = AttentionCase((300, 150), (900, 150), 8, 2, head_dim, dtype=torch.bfloat16, softcap=30.0)
    given = case.inputs("cuda")
    given.q *= gain
    out, lse = attention(given.q, given.k, given.v, return_lse=True, **given.options)
    expected, expected_lse = case.expected(given)
    extra = 2.0**-8 * case.weighed_magnitude(given)
    assert ((out.double() - expected).abs() <= extra + 2.0**-7 * expected.abs() + 1e-3).all()
    torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("queries", [1, 200])
def test_a_thousand_runs_give_the_same_bits(queries: int) -> None:
    """The same inputs give the same bits every time."""
    case = AttentionCase((queries, queries), (3000, 700), 16, 4, 128, dtype=torch.bfloat16)
    given = case.inputs("cuda")
    first = attention(given.q, given.k, given.v, **given.options)
    differs = torch.zeros((), dtype=torch.bool, device="cuda")
    for _ in range(1000):
        differs |= (attention(given.q, given.k, given.v, **given.options) != first).any()
    assert not differs


@pytest.mark.parametrize("queries", [1, 6, 12, 150])
def test_deterministic_ignores_the_rest_of_the_batch(queries: int) -> None:
    """With `deterministic`, a sequence's bits are those it has alone."""
    case = AttentionCase(
        (queries, 1, 300), (4000, 900, 300), dtype=torch.bfloat16, deterministic=True
    )
    given = case.inputs("cuda")
    together = attention(given.q, given.k, given.v, **given.options)
    options = given.options | {
        name: given.options[name][:2].contiguous() for name in ("cu_seqlens_q", "cu_seqlens_k")
    }
    options |= {"max_seqlen_q": queries, "max_seqlen_k": 4000}
    alone = attention(given.q[:queries], given.k[:4000], given.v[:4000], **options)
    assert torch.equal(together[:queries], alone)


def test_offsets_beyond_32_bits() -> None:
    """Pages whose elements are past 2^31 are read and written where they are."""
    pages, heads, dim = 2**31 // (16 * 4 * 128) + 8, 4, 128
    cache = torch.empty(2, pages, 16, heads, dim, dtype=torch.bfloat16, device="cuda")
    q, key, value = (torch.randn(20, heads, dim, device="cuda").bfloat16() for _ in range(3))
    table = torch.tensor([[pages - 1, pages - 3]], dtype=torch.int32, device="cuda")
    slots = torch.cat([table[0, i].long() * 16 + torch.arange(16, device="cuda") for i in (0, 1)])
    reshape_and_cache(key, value, cache[0], cache[1], slots[:20].contiguous())
    offsets = torch.tensor([0, 20], dtype=torch.int32, device="cuda")
    lengths = {"cu_seqlens_q": offsets, "max_seqlen_q": 20, "max_seqlen_k": 20}
    paged = attention(q, cache[0], cache[1], block_table=table, seqused_k=offsets[1:], **lengths)
    dense = attention(q, key, value, cu_seqlens_k=offsets, **lengths)
    torch.testing.assert_close(paged, dense, rtol=1e-2, atol=1e-2)


def test_graph_replays_with_other_lengths() -> None:
    """A captured call of a padded batch follows lengths, pages and queries that change."""
    case = AttentionCase((1,) * 6, (900,) * 6, 16, 4, 128, dtype=torch.bfloat16, page_size=16)
    given = case.inputs("cuda")
    out = torch.empty_like(given.q)
    options = given.options | {"out": out}
    attention(given.q, given.k, given.v, **options)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        attention(given.q, given.k, given.v, **options)
    given.q.copy_(torch.randn_like(given.q))
    given.options["seqused_k"].copy_(torch.tensor([1, 900, 17, 333, 0, 0]).int())
    given.options["cu_seqlens_q"].copy_(torch.tensor([0, 1, 2, 3, 4, 4, 4]).int())
    out.fill_(7.0)
    graph.replay()
    expected, _ = case.expected(given)
    torch.testing.assert_close(out[:4].double(), expected[:4], rtol=2e-2, atol=2e-2)
    assert (out[4:] == 7.0).all()


def test_a_call_without_the_dispatcher_gives_the_same_bits() -> None:
    """The first call goes through it, later ones need not, and a watcher brings it back."""
    case = AttentionCase((1, 1), (900, 30), 16, 4, 128, dtype=torch.bfloat16, page_size=16)
    given = case.inputs("cuda")
    outs = [attention(given.q, given.k, given.v, **given.options) for _ in range(2)]
    with torch.device("cuda"):
        outs.append(attention(given.q, given.k, given.v, **given.options))
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])


@pytest.mark.parametrize(
    ("queries", "dim", "flagged"),
    [(1, 64, False), (200, 64, False), (200, 64, True), (200, 128, False)],
)
def test_compile_sees_through_the_triton_operators(queries: int, dim: int, flagged: bool) -> None:
    """Under torch.compile, in one graph, they give what the operator gives."""
    pytest.importorskip("triton")
    from mainboard.kernels.triton import traced

    assert "attention" in traced.OPERATORS
    batch, length = 3, 1500
    pages = torch.randn(2, batch * 94, 16, 2, dim, device="cuda", dtype=torch.float16)
    q = torch.randn(batch * queries, 8, dim, device="cuda", dtype=torch.float16)
    begins = torch.arange(batch + 1, device="cuda").int() * queries
    used = torch.tensor([1500, 321, 200], device="cuda").int()
    table = torch.randperm(batch * 94, device="cuda").int().view(batch, 94)
    flags = torch.tensor([False, True, False], device="cuda") if flagged else None

    def step(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(q)
        torch.ops.mainboard_triton.attention(
            q + 1, k, v, out, None, begins, None, used, table, queries, length, 0.1, not flagged,
            -1, -1, 0.0, None, None, None, None, False, flags,
        )  # fmt: skip
        return out * 2

    expected = 2 * attention(
        q + 1, pages[0], pages[1], cu_seqlens_q=begins, seqused_k=used, block_table=table,
        max_seqlen_q=queries, max_seqlen_k=length, softmax_scale=0.1,
        causal=True if flags is None else flags,
    )  # fmt: skip
    compiled = torch.compile(step, fullgraph=True, dynamic=False)
    torch.testing.assert_close(compiled(q, *pages), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("queries", [1, 300])
def test_a_warm_up_leaves_nothing_to_compile(queries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """After it, calls of those sizes compile no Triton kernel, whatever their lengths."""
    knobs = pytest.importorskip("triton").knobs
    cache = torch.randn(2, 400, 16, 3, 64, device="cuda", dtype=torch.float16)
    compiled: list[object] = []
    monkeypatch.setattr(
        knobs.runtime, "jit_post_compile_hook", lambda **event: compiled.append(event["fn"].name)
    )
    sizes = {"queries": [queries], "keys": [1400], "batches": [3]}
    warm_up(cache[0], cache[1], heads=9, deterministic=False, softcap=17.0, **sizes)
    before = list(compiled)
    used = [1390, 700, 1]
    out = attention(
        torch.randn(3 * queries, 9, 64, device="cuda", dtype=torch.float16), cache[0], cache[1],
        cu_seqlens_q=torch.arange(4, device="cuda").int() * queries,
        seqused_k=torch.tensor(used, device="cuda").int(),
        block_table=torch.arange(3 * 88, device="cuda").int().view(3, 88),
        max_seqlen_q=queries, max_seqlen_k=1400, softcap=17.0,
    )  # fmt: skip
    assert out.isfinite().all()
    assert compiled == before


def test_graph_of_a_mixed_batch_replays() -> None:
    """Which sequences are short, long or causal may change from one replay to the next."""
    case = AttentionCase(
        (150, 1, 1, 90), (900,) * 4, 16, 4, 128, dtype=torch.bfloat16, page_size=16,
        causal=(True, False, True, False),
    )  # fmt: skip
    given = case.inputs("cuda")
    out = torch.empty_like(given.q)
    options = given.options | {"out": out}
    attention(given.q, given.k, given.v, **options)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        attention(given.q, given.k, given.v, **options)
    given.options["seqused_k"].copy_(torch.tensor([900, 777, 130, 5]).int())
    given.options["cu_seqlens_q"].copy_(torch.tensor([0, 1, 101, 231, 236]).int())
    given.options["causal"].copy_(torch.tensor([True, True, False, False]))
    out.fill_(7.0)
    graph.replay()
    expected, _ = case.expected(given)
    torch.testing.assert_close(out[:236].double(), expected[:236], rtol=2e-2, atol=2e-2)
    assert (out[236:] == 7.0).all()


@pytest.mark.parametrize("cache_dtype", [None, *FP8_DTYPES])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_cache_holds_what_the_reference_holds(
    dtype: torch.dtype, cache_dtype: torch.dtype | None
) -> None:
    """Every format gets the reference's values; slot -1 and other slots stay."""
    key, value = torch.randn(2, 40, 3, 72).to(dtype).unbind(0)
    key[3, 1, :4] = torch.tensor([float("nan"), 1e9, -1e9, 0.0]).to(dtype)
    stored = cache_dtype or dtype
    pair = [torch.randn(6, 16, 3, 72).to(stored) for _ in range(2)]
    slots = torch.randperm(6 * 16)[:40]
    slots[[0, 17]] = -1
    scales = (torch.rand(3) + 0.5, torch.tensor([0.25])) if cache_dtype else (None, None)
    there = [x.cuda() for x in pair]
    reference.reshape_and_cache(key, value, *pair, slots, *scales)
    k_scale, v_scale = (x if x is None else x.cuda() for x in scales)
    reshape_and_cache(
        key.cuda(), value.cuda(), *there, slots.cuda(), k_scale=k_scale, v_scale=v_scale
    )
    for got, want in zip(there, pair, strict=True):
        assert torch.equal(*(x.cpu().float().nan_to_num(nan=12345.0) for x in (got, want)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dim", [40, 128, 512])
def test_merge_is_the_references(dtype: torch.dtype, dim: int) -> None:
    """Two results are joined as the reference joins them; an empty part may hold NaN."""
    a, b = torch.randn(2, 37, 5, dim, device="cuda").to(dtype).unbind(0)
    a_lse, b_lse = torch.randn(2, 5, 37, device="cuda").unbind(0)
    b[3], b_lse[:, 3] = float("nan"), float("-inf")
    a_lse[:, 5] = b_lse[:, 5] = float("-inf")
    out, lse = merge_attention_states(a, a_lse, b, b_lse)
    want, want_lse = torch.empty_like(out), torch.empty_like(lse)
    reference.merge_attention_states(want, want_lse, a, a_lse, b, b_lse)
    torch.testing.assert_close(out, want)
    torch.testing.assert_close(lse, want_lse)


@pytest.mark.parametrize("wider", [0, 1, 8])
def test_latent_queries_lie_in_any_order(wider: int) -> None:
    """Heads outside tokens, and rows that do not begin at multiples of 16 bytes."""
    q = torch.randn(6, 16, 576 + wider, device="cuda").bfloat16()[..., :576]
    cache = torch.randn(9, 64, 576, device="cuda").bfloat16()
    options = {
        "cu_seqlens_q": torch.tensor([0, 2, 6], dtype=torch.int32, device="cuda"),
        "seqused_k": torch.tensor([300, 64], dtype=torch.int32, device="cuda"),
        "block_table": torch.randperm(9, device="cuda").int()[None].repeat(2, 1),
        "max_seqlen_q": 4, "max_seqlen_k": 300, "softmax_scale": 0.07,
    }  # fmt: skip
    want = mla_decode(q.contiguous(), cache, **options)
    for layout in (q, q.transpose(0, 1).contiguous().transpose(0, 1)):
        assert torch.equal(mla_decode(layout, cache, **options), want)


@pytest.mark.parametrize("cache_dtype", [None, *FP8_DTYPES])
@pytest.mark.parametrize("heads", [1, 16, 40, 128])
def test_latent_attention(heads: int, cache_dtype: torch.dtype | None) -> None:
    """Latent attention over rows written by concat_and_cache_mla agrees with float64."""
    latent, rotary, page = 512, 64, 64
    queries, keys = (1, 2, 1, 0), (700, 130, 0, 5)
    cache = torch.full((20, page, latent + rotary), float("nan"), device="cuda").to(
        cache_dtype or torch.bfloat16
    )
    order = torch.randperm(20).tolist()
    table = torch.full((4, 12), -(2**31), dtype=torch.int32)
    for i, length in enumerate(keys):
        pages, order = order[: -(-length // page)], order[-(-length // page) :]
        table[i, : len(pages)] = torch.tensor(pages, dtype=torch.int32)
        rows = torch.randn(length, latent + rotary, device="cuda").bfloat16()
        slots = (
            torch.tensor(pages, dtype=torch.long)[:, None] * page + torch.arange(page)
        ).flatten()
        concat_and_cache_mla(
            rows[:, :latent], rows[:, latent:], cache, slots[:length].cuda(),
            kv_scale=0.5 if cache_dtype else None,
        )  # fmt: skip
    scale = torch.tensor([0.5], device="cuda") if cache_dtype else None
    q = torch.randn(sum(queries), heads, latent + rotary, device="cuda").bfloat16()
    offsets = torch.tensor([0, *queries]).cumsum(0).int().cuda()
    used = torch.tensor(keys, dtype=torch.int32, device="cuda")
    out, lse = mla_decode(
        q, cache, cu_seqlens_q=offsets, seqused_k=used, block_table=table.cuda(), max_seqlen_q=2,
        max_seqlen_k=700, softmax_scale=0.07, kv_scale=scale, return_lse=True,
    )  # fmt: skip
    want = torch.empty(out.shape, dtype=torch.float64, device="cuda")
    want_lse = torch.empty(lse.shape, dtype=torch.float64, device="cuda")
    reference.mla_decode(
        q, cache, want, want_lse, offsets, used, table.cuda(), 2, 700, 0.07, True, scale, False,
        precision=torch.float64,
    )  # fmt: skip
    torch.testing.assert_close(out.double(), want, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(lse.double(), want_lse, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.uint8, *FP8_DTYPES])
@pytest.mark.parametrize("shape", [(16, 8, 128), (16, 3, 5), (32, 576)])
def test_copied_pages(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Pages are copied in every cache of a call, those of a pair with -1 and others stay."""
    caches = [torch.randint(0, 255, (20, 2, *shape), device="cuda").to(dtype)[:, i] for i in (0, 1)]
    pairs = torch.tensor([[3, 4], [3, 19], [-1, 5], [6, -1], [0, 7]])
    expected = [cache.clone() for cache in caches]
    reference.copy_blocks(expected, pairs.cuda())
    copy_blocks(caches, pairs.cuda())
    for got, want in zip(caches, expected, strict=True):
        assert torch.equal(got.view(torch.uint8), want.view(torch.uint8))


@pytest.mark.parametrize("pinned", [False, True])
def test_swapped_pages_come_back(pinned: bool) -> None:
    """Pages go to the host and come back to other places, in runs and alone."""
    there = torch.randn(12, 16, 2, 64, device="cuda").bfloat16()
    host = torch.zeros(9, 16, 2, 64, dtype=torch.bfloat16, pin_memory=pinned)
    out = torch.tensor([[3, 0], [4, 1], [5, 2], [9, 8], [0, 4]])
    swap_blocks(there, host, out)
    torch.cuda.synchronize()
    assert torch.equal(host[out[:, 1]], there.cpu()[out[:, 0]])
    back = torch.tensor([[0, 11], [1, 10], [8, 7]])
    swap_blocks(host, there, back)
    assert torch.equal(there.cpu()[back[:, 1]], host[back[:, 0]])
    swap_blocks(there, there, torch.tensor([[11, 1]]))
    assert torch.equal(there[1], there[11])

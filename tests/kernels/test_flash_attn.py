"""The functions of the flash-attn package, against softmax written out in float64."""

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

from mainboard.errors import UnsupportedConfigurationError
from mainboard.kernels.flash_attn import (
    flash_attn_func,
    flash_attn_varlen_func,
    flash_attn_with_kvcache,
)


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    torch.manual_seed(0)


def expected(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    window: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    slopes: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """One sequence, [tokens, heads, dim]: its attention, and the log of its denominator."""
    group = q.shape[1] // k.shape[1]
    q, k, v = (x.double() for x in (q, k, v))
    k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
    s = torch.einsum("qhd,khd->hqk", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if softcap:
        s = softcap * torch.tanh(s / softcap)
    i = torch.arange(q.shape[0])[:, None] + k.shape[0] - q.shape[0]
    j = torch.arange(k.shape[0])[None]
    if slopes is not None:
        s = s - slopes.double()[:, None, None] * (i - j).abs()
    left, right = window
    hidden = (j > i) if causal else torch.zeros_like(i - j, dtype=torch.bool)
    hidden = hidden | ((j < i - left) if left >= 0 else False)
    hidden = hidden | ((j > i + right) if right >= 0 else False)
    s = s.masked_fill(hidden, float("-inf"))
    weights = s.softmax(-1).nan_to_num()
    return torch.einsum("hqk,khd->qhd", weights, v), s.logsumexp(-1)


def agree(got: Tensor, want: Tensor) -> None:
    """Equal to float32's precision."""
    torch.testing.assert_close(got.double(), want, atol=2e-5, rtol=1e-5)


OPTIONS = [
    {},
    {"causal": True},
    {"window_size": (3, 2)},
    {"causal": True, "window_size": (4, -1)},
    {"softcap": 0.7, "softmax_scale": 1.5},
    {"causal": True, "alibi_slopes": torch.tensor([0.1, 0.2, 0.3, 0.4])},
    {"deterministic": True},
]


def in_our_words(options: dict[str, Any]) -> dict[str, Any]:
    """The options as `expected` takes them."""
    names = {"window_size": "window", "alibi_slopes": "slopes", "softmax_scale": "scale"}
    return {names.get(k, k): x for k, x in options.items() if k != "deterministic"}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("layout", ["tokens first", "heads first", "packed together"])
def test_equal_lengths(options: dict[str, Any], layout: str) -> None:
    """A batch of equal lengths, grouped heads, in each layout that callers hold."""
    q = torch.randn(2, 5, 4, 32)
    k, v = torch.randn(2, 9, 2, 32), torch.randn(2, 9, 2, 32)
    if layout == "heads first":
        q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
    elif layout == "packed together":
        k, v = torch.stack([k, v], dim=2).unbind(2)
    got = flash_attn_func(q, k, v, **options)
    assert got.shape == (2, 5, 4, 32)
    for b in range(2):
        agree(got[b], expected(q[b], k[b], v[b], **in_our_words(options))[0])


def test_more_queries_than_keys_give_zeros_first() -> None:
    """Causal is aligned to the last query and key, as in flash-attn since 2.1."""
    q, (k, v) = torch.randn(1, 5, 2, 16), torch.randn(2, 1, 2, 2, 16)
    got = flash_attn_func(q, k, v, causal=True)
    assert not got[:, :3].any()
    agree(got[0], expected(q[0], k[0], v[0], causal=True)[0])


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("paged", [False, True])
def test_any_lengths(options: dict[str, Any], paged: bool) -> None:
    """Sequences end to end, one of them empty, dense and in pages."""
    lengths_q, lengths_k = (3, 0, 7), (20, 5, 7)
    cu_q, cu_k = (
        torch.tensor([0, *torch.tensor(n).cumsum(0)], dtype=torch.int32)
        for n in (lengths_q, lengths_k)
    )
    q, k, v = torch.randn(10, 4, 16), torch.randn(32, 2, 16), torch.randn(32, 2, 16)
    sources, table = (k, v), None
    if paged:
        table = torch.tensor([[3, 1], [0, 9], [2, 9]], dtype=torch.int32)
        sources = (torch.randn(4, 16, 2, 16), torch.randn(4, 16, 2, 16))
        for cache, x in zip(sources, (k, v), strict=True):
            for row, begin, length in zip(table.tolist(), cu_k.tolist(), lengths_k, strict=False):
                for t in range(length):
                    cache[row[t // 16], t % 16] = x[begin + t]
    got = flash_attn_varlen_func(
        q, *sources, cu_q, cu_k, max(lengths_q), max(lengths_k), **options, block_table=table
    )
    for i in range(3):
        queries, keys = slice(cu_q[i], cu_q[i + 1]), slice(cu_k[i], cu_k[i + 1])
        agree(got[queries], expected(q[queries], k[keys], v[keys], **in_our_words(options))[0])


@pytest.mark.parametrize("options", OPTIONS[:-1], ids=str)
@pytest.mark.parametrize("room", [32, 27])
@pytest.mark.parametrize("heads_first", [False, True])
def test_a_cache_with_new_keys(options: dict[str, Any], room: int, heads_first: bool) -> None:
    """New keys are written behind the cached ones, then all are attended to."""
    caches = [torch.randn(3, room, 2, 16) for _ in range(2)]
    if heads_first:
        caches = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in caches]
    before = [x.clone() for x in caches]
    q, new = torch.randn(3, 2, 4, 16), torch.randn(2, 3, 2, 2, 16)
    lengths = torch.tensor([0, 20, 7], dtype=torch.int32)
    got, lse = flash_attn_with_kvcache(
        q, *caches, *new, cache_seqlens=lengths, return_softmax_lse=True, **options
    )
    assert lse.shape == (3, 4, 2)
    for b, n in enumerate(lengths.tolist()):
        keys, values = (torch.cat([old[b, :n], x[b]]) for old, x in zip(before, new, strict=True))
        want, want_lse = expected(q[b], keys, values, **in_our_words(options))
        agree(got[b], want)
        agree(lse[b], want_lse)
        for cache, old, x in zip(caches, before, new, strict=True):
            assert torch.equal(cache[b, n : n + 2], x[b])
            assert torch.equal(cache[b, :n], old[b, :n])
            assert torch.equal(cache[b, n + 2 :], old[b, n + 2 :])


def test_a_paged_cache_with_new_keys() -> None:
    """New keys go to the pages of the table, across their border."""
    caches = [torch.full((5, 16, 2, 16), float("nan")) for _ in range(2)]
    table = torch.tensor([[4, 0], [1, 3]], dtype=torch.int32)
    old, new = torch.randn(2, 2, 15, 2, 16), torch.randn(2, 2, 3, 2, 16)
    for cache, x in zip(caches, old, strict=True):
        for b in range(2):
            cache[table[b, 0], :15] = x[b]
    q = torch.randn(2, 3, 2, 16)
    lengths = torch.tensor([15, 4], dtype=torch.int32)
    got = flash_attn_with_kvcache(
        q, *caches, *new, cache_seqlens=lengths, block_table=table, causal=True
    )
    for b, n in enumerate(lengths.tolist()):
        keys, values = (torch.cat([x[b, :n], y[b]]) for x, y in zip(old, new, strict=True))
        agree(got[b], expected(q[b], keys, values, causal=True)[0])


@pytest.mark.parametrize("cache_seqlens", [None, 11])
def test_one_length_serves_all_rows(cache_seqlens: int | None) -> None:
    """A number is every row's length; None is all of the cache."""
    q, (k, v) = torch.randn(2, 1, 2, 16), torch.randn(2, 2, 19, 2, 16)
    got = flash_attn_with_kvcache(q, k, v, cache_seqlens=cache_seqlens)
    length = 19 if cache_seqlens is None else cache_seqlens
    for b in range(2):
        agree(got[b], expected(q[b], k[b, :length], v[b, :length])[0])


def test_rows_of_the_cache_in_any_order() -> None:
    """`cache_batch_idx` names each sequence's row; others are neither read nor written."""
    caches = torch.randn(2, 5, 12, 2, 16)
    before = caches.clone()
    rows = torch.tensor([3, 0], dtype=torch.int32)
    q, new = torch.randn(2, 1, 2, 16), torch.randn(2, 2, 1, 2, 16)
    got = flash_attn_with_kvcache(q, *caches, *new, cache_seqlens=6, cache_batch_idx=rows)
    for b, row in enumerate(rows.tolist()):
        keys, values = (torch.cat([x[row, :6], y[b]]) for x, y in zip(before, new, strict=True))
        agree(got[b], expected(q[b], keys, values)[0])
    assert torch.equal(caches[:, [1, 2, 4]], before[:, [1, 2, 4]])


def test_keys_that_begin_later() -> None:
    """What lies before `cache_leftpad` is not read."""
    k, v = torch.randn(2, 3, 10, 2, 16)
    pad, lengths = (torch.tensor(x, dtype=torch.int32) for x in ([0, 4, 9], [7, 10, 10]))
    k[1, :4], v[1, :4] = float("nan"), float("nan")
    q = torch.randn(3, 1, 2, 16)
    got = flash_attn_with_kvcache(q, k, v, cache_seqlens=lengths, cache_leftpad=pad, causal=True)
    for b, (begin, end) in enumerate(zip(pad.tolist(), lengths.tolist(), strict=True)):
        agree(got[b], expected(q[b], k[b, begin:end], v[b, begin:end], causal=True)[0])


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("causal", [True, False])
def test_rotary_positions(interleaved: bool, causal: bool) -> None:
    """Keys turn by their places; queries too, but stand still where nothing is local."""
    angle = torch.arange(30.0)[:, None] * torch.tensor([1.0, 0.3, 0.1])
    cache = torch.zeros(2, 1, 20, 1, 8)
    q, new = torch.randn(1, 3, 1, 8), torch.randn(2, 1, 3, 1, 8)
    got = flash_attn_with_kvcache(
        q,
        *cache,
        *new,
        rotary_cos=angle.cos(),
        rotary_sin=angle.sin(),
        cache_seqlens=5,
        causal=causal,
        rotary_interleaved=interleaved,
    )
    pairs = [(0, 1), (2, 3), (4, 5)] if interleaved else [(0, 3), (1, 4), (2, 5)]

    def turn(x: Tensor, position: int) -> Tensor:
        y = x.clone()
        for n, (a, b) in enumerate(pairs):
            c, s = angle[position, n].cos(), angle[position, n].sin()
            y[..., a], y[..., b] = x[..., a] * c - x[..., b] * s, x[..., a] * s + x[..., b] * c
        return y

    keys = torch.cat([torch.zeros(5, 1, 8)] + [turn(new[0, :, t], 5 + t) for t in range(3)])
    values = torch.cat([torch.zeros(5, 1, 8), new[1, 0]])
    queries = torch.cat([turn(q[:, t], 5 + t if causal else 5) for t in range(3)])
    agree(got[0], expected(queries, keys, values, causal=causal)[0])


def test_the_order_of_arguments_is_flash_attns() -> None:
    """Calls written by position keep their meaning."""
    equal = "q k v dropout_p softmax_scale causal window_size softcap alibi_slopes deterministic"
    assert list(inspect.signature(flash_attn_func).parameters) == [
        *equal.split(),
        "return_attn_probs",
    ]
    lengths = "cu_seqlens_q cu_seqlens_k max_seqlen_q max_seqlen_k"
    assert list(inspect.signature(flash_attn_varlen_func).parameters) == [
        *equal.split()[:3],
        *lengths.split(),
        *equal.split()[3:],
        "return_attn_probs",
        "block_table",
    ]
    cache = (
        "q k_cache v_cache k v rotary_cos rotary_sin cache_seqlens cache_batch_idx cache_leftpad "
        "block_table softmax_scale causal window_size softcap rotary_interleaved alibi_slopes "
        "num_splits return_softmax_lse"
    )
    assert list(inspect.signature(flash_attn_with_kvcache).parameters) == cache.split()


def test_it_compiles_into_one_graph() -> None:
    """torch.compile needs no break for it."""
    q, k, v = torch.randn(3, 2, 6, 2, 16)
    k = k.transpose(1, 2).contiguous().transpose(1, 2)
    compiled = torch.compile(flash_attn_func, fullgraph=True, backend="aot_eager")
    with torch.inference_mode():
        assert torch.equal(compiled(q, k, v, causal=True), flash_attn_func(q, k, v, causal=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dropout_p": 0.1}, r"dropout_p is 0\.1"),
        ({"return_attn_probs": True}, "return_lse=True"),
        ({"alibi_slopes": torch.zeros(2, 2)}, "one slope per head"),
    ],
)
def test_what_is_not_served_is_refused(options: dict[str, Any], message: str) -> None:
    """Each names the argument and what to do instead."""
    x = torch.randn(2, 3, 2, 16)
    with pytest.raises(UnsupportedConfigurationError, match=message):
        flash_attn_func(x, x, x, **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"k": True}, ValueError, "give both"),
        ({"k": True, "v": True}, ValueError, "cache_seqlens is missing"),
        ({"rotary_cos": True}, ValueError, "belong together"),
        ({"rotary_cos": True, "rotary_sin": True}, ValueError, "give k and v"),
        (
            {"block_table": True, "cache_leftpad": True, "cache_batch_idx": True},
            UnsupportedConfigurationError,
            "block_table with cache_leftpad.*\n.*index block_table instead",
        ),
    ],
)
def test_cache_arguments_that_do_not_fit_are_refused(
    options: dict[str, bool], error: type[Exception], message: str
) -> None:
    """Each combination is refused before anything is written."""
    cache, x = torch.zeros(2, 16, 2, 16), torch.randn(2, 1, 2, 16)
    given = {name: torch.zeros(2, 1, dtype=torch.int32) for name in options}
    given.update({name: x for name in options if name in "kv"})
    with pytest.raises(error, match=message):
        flash_attn_with_kvcache(x, cache, cache, **given)
    assert not cache.any()


def test_a_new_key_of_another_dtype_is_refused() -> None:
    """It would be rounded in silence otherwise."""
    cache, x = torch.zeros(1, 16, 2, 16, dtype=torch.bfloat16), torch.randn(1, 1, 2, 16)
    with pytest.raises(TypeError, match="k has dtype"):
        flash_attn_with_kvcache(x.bfloat16(), cache, cache, x, x, cache_seqlens=0)

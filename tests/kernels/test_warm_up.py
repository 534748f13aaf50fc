"""Calls made ahead of time."""

from typing import Any

import pytest
import torch

from mainboard.kernels import warm, warm_up

CACHE = torch.full((3, 16, 2, 64), float("nan"))


@pytest.mark.parametrize("dense", [False, True])
def test_every_combination_is_called_on_empty_sequences(
    dense: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each combination of sizes is one call, with the caller's tensors and options."""
    seen: list[tuple[int, int, int]] = []
    call = warm.attention

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **given: object) -> None:
        seen.append((len(q), given["max_seqlen_q"], given["max_seqlen_k"]))  # type: ignore[arg-type]
        assert given["window"] == (8, -1)
        assert not given["cu_seqlens_q"].any()  # type: ignore[attr-defined]
        call(q, k, v, **given)  # type: ignore[arg-type]

    monkeypatch.setattr(warm, "attention", attention)
    k = CACHE.flatten(0, 1) if dense else CACHE
    seconds = warm_up(k, k, heads=4, keys=[100], queries=[1, 7], batches=[1, 3], window=(8, -1))
    assert seconds > 0
    assert seen == [(1, 1, 100), (7, 7, 100), (3, 1, 100), (21, 7, 100)]


def test_queries_over_8_bit_floats_are_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of 8-bit floats does not say what queries are."""
    dtypes = []
    monkeypatch.setattr(warm, "attention", lambda q, k, v, **given: dtypes.append(q.dtype))
    warm_up(CACHE.to(torch.float8_e5m2), CACHE.to(torch.float8_e5m2), heads=4, keys=[16])
    warm_up(CACHE, CACHE, heads=4, keys=[16])
    assert dtypes == [torch.bfloat16, torch.float32]


def test_flags_of_any_length_stand_for_those_of_each_batch() -> None:
    """Causal flags are one for each sequence, and numbers of sequences differ."""
    flags = torch.tensor([True, False])
    assert warm_up(CACHE, CACHE, heads=4, keys=[16], batches=[1, 3], causal=flags) > 0


def test_latent_rows_are_warmed_up_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without values the cache is one of latent rows, and `mla_decode` is what is called."""
    seen = []
    call = warm.mla_decode

    def mla_decode(q: torch.Tensor, cache: torch.Tensor, **given: Any) -> None:
        seen.append((tuple(q.shape), given["max_seqlen_k"], given["softmax_scale"]))
        call(q, cache, **given)

    monkeypatch.setattr(warm, "mla_decode", mla_decode)
    rows = torch.full((3, 16, 80), float("nan"))
    warm_up(rows, None, heads=5, keys=[40], batches=[2], softmax_scale=0.5, value_dim=64)
    assert seen == [((2, 5, 80), 40, 0.5)]

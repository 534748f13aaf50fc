"""Repeatability: the same inputs give the same bits."""

import pytest
import torch

from mainboard.kernels import attention
from mainboard.testing.attention_cases import AttentionCase


def run(case: AttentionCase) -> torch.Tensor:
    """The output of a case."""
    given = case.inputs()
    return attention(given.q, given.k, given.v, **given.options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits_run_after_run(dtype: torch.dtype) -> None:
    """A mixed batch with split sequences gives the same bits every time."""
    case = AttentionCase((1, 200, 5), (9000, 300, 4000), dtype=dtype)
    first = run(case)
    for _ in range(5):
        assert torch.equal(run(case), first)


@pytest.mark.parametrize("queries", [1, 5, 130])
def test_deterministic_ignores_the_rest_of_the_batch(queries: int) -> None:
    """With `deterministic`, a sequence's bits are those it has alone."""
    case = AttentionCase((queries, 1, 77), (5000, 9000, 300), deterministic=True)
    given = case.inputs()
    together = attention(given.q, given.k, given.v, **given.options)
    alone_options = dict(given.options)
    alone_options["cu_seqlens_q"] = given.options["cu_seqlens_q"][:2].contiguous()
    alone_options["cu_seqlens_k"] = given.options["cu_seqlens_k"][:2].contiguous()
    alone = attention(given.q[:queries], given.k[:5000], given.v[:5000], **alone_options)
    assert torch.equal(together[:queries], alone)


def test_deterministic_ignores_the_number_of_threads() -> None:
    """With `deterministic`, one thread and several give the same bits."""
    case = AttentionCase((1, 60), (9000, 3000), deterministic=True)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = run(case)
        torch.set_num_threads(4)
        four = run(case)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one, four)

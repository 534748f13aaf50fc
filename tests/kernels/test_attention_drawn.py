"""Attention against float64 over drawn cases: every dtype, layout and feature, combined."""

import pytest
import torch

from mainboard.kernels import attention
from mainboard.testing.attention_cases import AttentionCase, check_case, draw_case

CASES_PER_TEST = 100


@pytest.mark.parametrize("first", range(0, 2400, CASES_PER_TEST))
def test_drawn_cases(first: int) -> None:
    """A hundred drawn cases, named by their seeds, agree with the float64 reference."""
    for seed in range(first, first + CASES_PER_TEST):
        check_case(draw_case(seed))


@pytest.mark.parametrize("group", range(1, 17))
def test_every_group_size(group: int) -> None:
    """Decode, verification and prefill rows are right for every number of heads per key head."""
    case = AttentionCase((1, 3, 40), (70, 70, 70), heads=2 * group, kv_heads=2, head_dim=64)
    check_case(case)


@pytest.mark.parametrize("heads", [200, 256, 500, 197 * 2])
def test_more_heads_than_a_block_holds(heads: int) -> None:
    """Hundreds of query heads on one key head are split between work items."""
    check_case(AttentionCase((1, 3), (40, 5), heads=heads, kv_heads=1, head_dim=32))
    check_case(AttentionCase((2,), (9,), heads=2 * heads, kv_heads=2, dtype=torch.bfloat16))


@pytest.mark.parametrize("head_dim", [32, 33, 64, 80, 96, 100, 128, 192, 256, 320])
def test_every_head_dim(head_dim: int) -> None:
    """Head dimensions need no padding by the caller, odd ones included."""
    check_case(AttentionCase((1, 20), (90, 20), head_dim=head_dim, dtype=torch.bfloat16))


def test_value_dim_differs() -> None:
    """Values may be narrower than keys, as in 192 / 128."""
    check_case(AttentionCase((1, 30), (64, 30), head_dim=192, value_dim=128))


def test_long_keys_are_split_and_joined() -> None:
    """A single decode row over many keys, split between threads, equals the whole."""
    check_case(AttentionCase((1,), (20_000,), heads=4, kv_heads=1, head_dim=64, sinks=True))
    check_case(AttentionCase((40,), (20_000,), heads=1, kv_heads=1, head_dim=64))


def test_nothing_at_all() -> None:
    """An empty batch and a batch of empty sequences are legal."""
    check_case(AttentionCase((), ()))
    check_case(AttentionCase((0, 0), (0, 5)))


def test_no_keys_gives_zero_and_minus_infinity() -> None:
    """A query without keys gives zeros, and a log-sum-exp of -inf."""
    given = AttentionCase((2,), (0,)).inputs()
    out, lse = attention(given.q, given.k, given.v, return_lse=True, **given.options)
    assert torch.equal(out, torch.zeros_like(out))
    assert torch.equal(lse, torch.full_like(lse, float("-inf")))


def test_no_keys_with_a_sink_is_the_sink() -> None:
    """The sink is one more score: alone, it is the log-sum-exp, and brings no value."""
    given = AttentionCase((2,), (0,), sinks=True).inputs()
    out, lse = attention(given.q, given.k, given.v, return_lse=True, **given.options)
    assert torch.equal(out, torch.zeros_like(out))
    torch.testing.assert_close(lse, given.options["sinks"][:, None].expand(-1, 2))


def test_large_scores_do_not_overflow() -> None:
    """Scores far apart and far from zero give the same as in float64."""
    case = AttentionCase((30, 1), (30, 80))
    given = case.inputs()
    given.q *= 100.0
    out, lse = attention(given.q, given.k, given.v, return_lse=True, **given.options)
    expected, expected_lse = case.expected(given)
    torch.testing.assert_close(out.double(), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-5, atol=1e-4)


def test_nan_in_a_used_value_is_not_hidden() -> None:
    """NaN that belongs to the input reaches the rows that see it, and only those."""
    given = AttentionCase((8,), (8,)).inputs()
    given.v[5] = float("nan")
    out = attention(given.q, given.k, given.v, **given.options)
    assert out[5:].isnan().all()
    given.k[2] = float("nan")
    out = attention(given.q, given.k, given.v, **given.options)
    assert out[2:].isnan().all()

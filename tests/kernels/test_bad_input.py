"""Each bad input gets an error that names the argument, what it is and what was expected."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mainboard.kernels import attention, merge_attention_states, reshape_and_cache
from mainboard.testing.attention_cases import AttentionCase, AttentionInputs

Change = Callable[[AttentionInputs], None]


def set_option(name: str, value: Any) -> Change:
    """Replace an option."""

    def change(given: AttentionInputs) -> None:
        given.options[name] = value

    return change


def set_tensor(name: str, to: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    """Replace q, k or v by what `to` makes of it."""

    def change(given: AttentionInputs) -> None:
        setattr(given, name, to(getattr(given, name)))

    return change


def edit(name: str, index: Any, value: int) -> Change:
    """Change one entry of an option."""

    def change(given: AttentionInputs) -> None:
        given.options[name][index] = value

    return change


DENSE = AttentionCase((3, 4), (5, 6))
PAGED = AttentionCase((3, 4), (5, 40), page_size=16)
META = torch.ones(2, device="meta")

BAD: list[tuple[AttentionCase, Change, type[Exception], str]] = [
    (DENSE, set_tensor("q", lambda x: x.double()), TypeError, r"q has dtype float64; expected"),
    (DENSE, set_tensor("q", lambda x: x[0]), ValueError, r"q has shape \(8, 64\); expected \[tok"),
    (DENSE, set_tensor("q", lambda x: x.mT), ValueError, r"q has stride 64 in its last"),
    (DENSE, set_tensor("q", lambda x: x[:, :3]), ValueError, r"q has 3 heads and k has 2"),
    (DENSE, set_tensor("k", lambda x: x.half()), TypeError, r"k has dtype float16; expected q's"),
    (DENSE, set_tensor("k", lambda x: x[..., :32]), ValueError, r"k has shape .* last dimension"),
    (DENSE, set_tensor("v", lambda x: x[:4]), ValueError, r"v has shape \(4, 2, 64\); expected"),
    (DENSE, set_tensor("v", lambda x: x.to("meta")), ValueError, r"v is on meta; expected cpu"),
    (PAGED, set_tensor("k", lambda x: x[:, :10]), ValueError, r"pages of 10 slots; expected a m"),
    (DENSE, set_option("cu_seqlens_q", torch.tensor([0, 3, 7])), TypeError, r"cu_seqlens_q has d"),
    (DENSE, set_option("cu_seqlens_k", None), ValueError, r"lengths are missing: give cu_seqlens"),
    (DENSE, set_option("cu_seqlens_k", torch.zeros(2).int()), ValueError, r"cu_seqlens_k has shap"),
    (PAGED, set_option("seqused_k", torch.zeros(3).int()), ValueError, r"seqused_k has shape \(3"),
    (PAGED, set_option("seqused_k", None), ValueError, r"lengths are missing"),
    (PAGED, set_option("block_table", torch.zeros(2, 2)), TypeError, r"block_table has dtype fl"),
    (PAGED, set_option("block_table", torch.zeros(1, 2).int()), ValueError, r"block_table has sh"),
    (DENSE, set_option("window", (-2, 0)), ValueError, r"window is \(-2, 0\); expected"),
    (DENSE, set_option("softcap", -1.0), ValueError, r"softcap is -1.0; expected 0"),
    (DENSE, set_option("softcap", float("nan")), ValueError, r"softcap is nan"),
    (DENSE, set_option("alibi_slopes", torch.zeros(7)), ValueError, r"alibi_slopes has shape"),
    (DENSE, set_option("alibi_slopes", torch.zeros(8).half()), TypeError, r"alibi_slopes has dt"),
    (DENSE, set_option("sinks", torch.zeros(1)), ValueError, r"sinks has shape \(1,\); expected"),
    (DENSE, set_option("k_scale", torch.zeros(5)), ValueError, r"k_scale has shape \(5,\); exp"),
    (DENSE, set_option("out", torch.zeros(7, 8, 63)), ValueError, r"out has shape"),
    (DENSE, set_option("out", torch.zeros(7, 8, 64).half()), TypeError, r"out has dtype float16"),
    (DENSE, set_option("causal", torch.ones(2)), TypeError, r"causal has dtype float32; expect"),
    (DENSE, set_option("causal", torch.ones(3).bool()), ValueError, r"causal has shape \(3,\)"),
    (DENSE, set_option("causal", torch.tensor(True)), ValueError, r"causal has shape \(\); expect"),
    (DENSE, set_option("causal", torch.ones(4).bool()[::2]), ValueError, r"causal is not contig"),
    (DENSE, set_option("causal", META.bool()), ValueError, r"causal is on meta; expected cpu"),
    # What only the values can tell.
    (DENSE, edit("cu_seqlens_q", 1, 9), ValueError, r"cu_seqlens_q\[1\] is 9; expected asc"),
    (DENSE, edit("cu_seqlens_q", 1, -1), ValueError, r"cu_seqlens_q\[1\] is -1"),
    (DENSE, edit("cu_seqlens_k", 2, 12), ValueError, r"cu_seqlens_k\[2\] is 12; expected asc"),
    (PAGED, edit("seqused_k", 0, -3), ValueError, r"seqused_k\[0\] is -3; expected 0 to"),
    (PAGED, edit("seqused_k", 1, 1000), ValueError, r"seqused_k\[1\] is 1000; expected 0 to"),
    (PAGED, edit("block_table", (1, 2), 99), ValueError, r"block_table\[1\]\[2\] is 99; expected"),
]


@pytest.mark.parametrize(("case", "change", "error", "message"), BAD)
def test_attention_refuses(
    case: AttentionCase, change: Change, error: type[Exception], message: str
) -> None:
    """One wrong argument at a time: the right type of error, naming it."""
    given = case.inputs()
    change(given)
    with pytest.raises(error, match=message):
        attention(given.q, given.k, given.v, **given.options)


def test_attention_refuses_gradients() -> None:
    """There is no backward, and silence would train nothing."""
    given = DENSE.inputs()
    given.q.requires_grad_()
    with pytest.raises(RuntimeError, match="attention has no backward"):
        attention(given.q, given.k, given.v, **given.options)
    with torch.no_grad():
        attention(given.q, given.k, given.v, **given.options)


def cache_arguments() -> list[Any]:
    """Good arguments of reshape_and_cache."""
    key, value = torch.randn(2, 5, 2, 64).unbind(0)
    caches = torch.zeros(2, 3, 16, 2, 64).unbind(0)
    return [key, value, *caches, torch.arange(5)]


@pytest.mark.parametrize(
    ("index", "to", "error", "message"),
    [
        (0, lambda x: x.long(), TypeError, "key has dtype int64"),
        (1, lambda x: x[..., :32], ValueError, "value_cache has shape"),
        (2, lambda x: x.half(), TypeError, "key_cache has dtype float16; expected q's float32"),
        (2, lambda x: x[:, :8], ValueError, "key_cache has pages of 8 slots"),
        (3, lambda x: x[:2], ValueError, "value_cache has shape"),
        (4, lambda x: x.int(), TypeError, "slot_mapping has dtype int32; expected int64"),
        (4, lambda x: torch.arange(6), ValueError, r"slot_mapping has shape \(6,\)"),
        (4, lambda x: x + 44, ValueError, r"slot_mapping\[4\] is 48; expected -1 to skip, or 0"),
        (4, lambda x: x - 2, ValueError, r"slot_mapping\[0\] is -2; expected -1 to skip"),
    ],
)
def test_reshape_and_cache_refuses(
    index: int, to: Callable[[torch.Tensor], torch.Tensor], error: type[Exception], message: str
) -> None:
    """One wrong argument at a time: the right type of error, naming it."""
    arguments = cache_arguments()
    arguments[index] = to(arguments[index])
    before = [cache.clone() for cache in arguments[2:4]]
    with pytest.raises(error, match=message):
        reshape_and_cache(*arguments)
    for cache, saved in zip(arguments[2:4], before, strict=True):
        assert torch.equal(cache, saved), "a refused call must not write"


@pytest.mark.parametrize(
    ("index", "to", "error", "message"),
    [
        (0, lambda x: x.double(), TypeError, "a has dtype float64"),
        (2, lambda x: x.half(), TypeError, "b has dtype float16; expected a's float32"),
        (2, lambda x: x[:4], ValueError, r"b has shape \(4, 2, 64\)"),
        (1, lambda x: x.T.contiguous(), ValueError, r"a_lse has shape \(5, 2\); expected \(2, 5\)"),
        (3, lambda x: x.double(), TypeError, "b_lse has dtype float64; expected float32"),
    ],
)
def test_merge_refuses(
    index: int, to: Callable[[torch.Tensor], torch.Tensor], error: type[Exception], message: str
) -> None:
    """One wrong argument at a time: the right type of error, naming it."""
    arguments = [torch.randn(5, 2, 64), torch.randn(2, 5), torch.randn(5, 2, 64), torch.randn(2, 5)]
    arguments[index] = to(arguments[index])
    with pytest.raises(error, match=message):
        merge_attention_states(*arguments)

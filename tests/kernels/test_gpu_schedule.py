"""What the scheduling of decode on the device promises, where only a device can tell."""

import pytest
import torch

from mainboard.kernels import attention
from mainboard.testing.attention_cases import AttentionCase, AttentionInputs

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")
gdc = pytest.importorskip("triton.language.extra.cuda.gdc")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() < (9, 0),
        reason="torch sees no GPU whose grids may start early",
    ),
]


@triton.jit
def write_late(lengths, values, n, size: tl.constexpr, turns: tl.constexpr):
    """Let the next grid start at once, take a while, and only then write."""
    gdc.gdc_launch_dependents()
    at = tl.arange(0, size)
    for _ in range(turns):
        tl.load(lengths + at, mask=at < n, volatile=True)
    tl.store(lengths + at, tl.load(values + at, mask=at < n), mask=at < n)


def batch_of(sequences: int) -> tuple[AttentionInputs, torch.Tensor]:
    """A call of equal sequences, and what it gives."""
    case = AttentionCase(
        (1,) * sequences, (900,) * sequences, 16, 4, 128, dtype=torch.bfloat16, page_size=16
    )
    given = case.inputs("cuda")
    return given, torch.empty_like(given.q)


def assert_follows(given: AttentionInputs, out: torch.Tensor, name: str, after: torch.Tensor,
                   stale: torch.Tensor) -> None:  # fmt: skip
    """A call's result is that of `after`, which the grid before writes late over `stale`."""
    argument = given.options[name].view(-1)[: after.numel()]
    argument.copy_(after)
    expected = attention(given.q, given.k, given.v, **given.options)
    argument.copy_(stale)
    out.zero_()
    torch.cuda.synchronize()
    write_late[1,](argument, after, after.numel(), size=512, turns=100, num_warps=1)
    attention(given.q, given.k, given.v, **given.options, out=out)
    assert torch.equal(out, expected)


# A warp plans ahead for as many sequences as it has lanes, for more, and for too many.
@pytest.mark.parametrize("sequences", [4, 32, 33, 256, 257])
def test_lengths_that_the_grid_before_writes_late(sequences: int) -> None:
    """A call follows the lengths that are there when the grid before it has ended."""
    given, out = batch_of(sequences)
    ints = {"dtype": torch.int32, "device": "cuda"}
    for turn in range(20):
        after = torch.randint(0, 901, (sequences,), **ints)
        most = 901 if turn % 2 else 2**31 - 1  # what is there before may be rubbish
        stale = torch.randint(-most, most, (sequences,), **ints) if turn % 4 else -after
        assert_follows(given, out, "seqused_k", after, stale)


def test_pages_that_the_grid_before_writes_late() -> None:
    """A call follows the table that is there then, and reads no page of what was there before."""
    given, out = batch_of(8)
    for cache in given.k, given.v:
        cache.nan_to_num_()  # unused slots are not numbers, and any page may be used here
    ints = {"dtype": torch.int32, "device": "cuda"}
    for _ in range(20):
        after = torch.randint(0, given.k.shape[0], (300,), **ints)
        assert_follows(
            given, out, "block_table", after, torch.randint(-(2**31), 2**31 - 1, (300,), **ints)
        )


def test_bits_do_not_depend_on_which_block_comes_last() -> None:
    """A sequence in many parts comes out the same, though blocks of uneven shares join them."""
    lengths = tuple(97 * i % 2048 + 1 for i in range(24))
    case = AttentionCase((1,) * 24, lengths, 32, 8, 128, dtype=torch.bfloat16, page_size=16)
    given = case.inputs("cuda")
    first = attention(given.q, given.k, given.v, **given.options)
    differ = torch.zeros((), dtype=torch.int32, device="cuda")
    for _ in range(1000):
        differ += (attention(given.q, given.k, given.v, **given.options) != first).any()
    assert not differ

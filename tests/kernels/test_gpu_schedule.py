"""What the scheduling of decode on the device promises, where only a device can tell."""

import pytest
import torch

from mainboard.kernels import attention
from mainboard.testing.attention_cases import AttentionCase

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


@pytest.mark.parametrize("sequences", [4, 32, 33])
def test_lengths_that_the_grid_before_writes_late(sequences: int) -> None:
    """A call follows the lengths that are there when the grid before it has ended."""
    case = AttentionCase(
        (1,) * sequences, (900,) * sequences, 16, 4, 128, dtype=torch.bfloat16, page_size=16
    )
    given = case.inputs("cuda")
    used = given.options["seqused_k"]
    out = torch.empty_like(given.q)
    options = given.options | {"out": out}
    for _ in range(20):
        before, after = torch.randint(0, 901, (2, sequences), dtype=torch.int32, device="cuda")
        used.copy_(after)
        expected = attention(given.q, given.k, given.v, **given.options)
        used.copy_(before)
        attention(given.q, given.k, given.v, **options)
        torch.cuda.synchronize()
        write_late[1,](used, after, sequences, size=64, turns=100, num_warps=1)
        attention(given.q, given.k, given.v, **options)
        assert torch.equal(out, expected)


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

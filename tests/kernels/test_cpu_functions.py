"""exp and tanh of every instruction set over their whole ranges, and what attention makes of them."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mainboard.kernels import library

ISAS = (
    "amx_fp16",
    "amx",
    "avx512_bf16",
    "avx512_vbmi",
    "avx512",
    "avx2",
    "neon_bf16",
    "neon",
    "baseline",
)
# Every so many'th float32, a prime so that all low bits come up.
STEP = 61
ULP = 2.0**-24  # half a unit in the last place, relative

# Softmax weights are what comes out when the values are the identity. One query takes the decode
# kernel, many take the prefill kernel.
WEIGHTS = """
import torch
from mainboard.kernels import attention

dtype = torch.{dtype}
# A score of 64 is known to half a unit in its last place, 4e-6; so is its exponential. Of 16 bits
# the weight, for a matrix unit, and the output are each rounded.
relative = {{torch.float32: 2e-5, torch.float16: 1.1 * 2**-10, torch.bfloat16: 1.1 * 2**-7}}[dtype]
absolute = {{torch.float32: 2e-38, torch.float16: 1e-7, torch.bfloat16: 2e-38}}[dtype]

def weights(scores, queries, **options):
    n = scores.numel()
    q, k = torch.zeros(queries, 1, n), torch.zeros(n, 1, n)
    q[:, 0, 0], k[:, 0, 0] = 1.0, scores
    return attention(
        q.to(dtype), k.to(dtype), torch.eye(n)[:, None].to(dtype),
        cu_seqlens_q=torch.tensor([0, queries]).int(), cu_seqlens_k=torch.tensor([0, n]).int(),
        max_seqlen_q=queries, max_seqlen_k=n, softmax_scale=1.0, causal=False, **options,
    )[:, 0].double()

def assert_weights(got, exact):
    want = torch.softmax(exact, dim=-1).expand_as(got)
    torch.testing.assert_close(got, want, rtol=relative, atol=absolute)

scores = torch.cat([
    torch.linspace(-200, 200, 57), torch.logspace(-6, 2, 31), -torch.logspace(-6, 2, 31),
    torch.tensor([0.0, 88.0, -88.0, 103.0, -103.0, 1e4, -1e4, 0.5, -0.5]),
]).to(dtype).float()
for queries in (1, 40):
    for cap in (0.5, 5.0, 15.0, 30.0, 50.0):
        s = scores.double()
        assert_weights(weights(scores, queries, softcap=cap), cap * torch.tanh(s / cap))
    key = torch.arange(scores.numel()).double()
    position = torch.arange(queries).double()[:, None] + scores.numel() - queries
    small = scores.clamp(-20, 20)
    for slope in (2.0**-8, 0.5, 3.0):
        exact = small.double() - slope * (position - key).abs()
        got = weights(small, queries, alibi_slopes=torch.tensor([slope]))
        assert_weights(got, exact)
        # Both, in this order: the cap first.
        exact = 15 * torch.tanh(small.double() / 15) - slope * (position - key).abs()
        got = weights(small, queries, alibi_slopes=torch.tensor([slope]), softcap=15.0)
        assert_weights(got, exact)
"""


def mapped(isa: str, function: str, x: Tensor) -> Tensor:
    """A function of the compiled kernels, over a vector."""
    path = library.loaded("cpu").path
    assert path is not None
    call = ctypes.CDLL(path).mainboard_cpu_map
    call.argtypes = (ctypes.c_char_p,) * 2 + (ctypes.c_void_p,) * 2 + (ctypes.c_int64,)
    to = torch.full_like(x, float("nan"))
    assert call(isa.encode(), function.encode(), x.data_ptr(), to.data_ptr(), x.numel()) == 1
    return to


def grid(smallest: float, largest: float) -> Tensor:
    """Positive float32 numbers from one to another, evenly spaced among those that there are."""
    ends = torch.tensor([smallest, largest]).view(torch.int32).tolist()
    bits = torch.arange(ends[0], ends[1], STEP, dtype=torch.int32)
    return torch.cat([bits, torch.tensor(ends, dtype=torch.int32)]).view(torch.float32)


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> str:
    """Every instruction set that is compiled in and runs here."""
    usable = library.loaded("cpu").usable
    if request.param not in usable:
        pytest.skip(f"{request.param} is not compiled in or does not run here: {usable}")
    name: str = request.param
    return name


def relative_error(got: Tensor, want: Tensor) -> float:
    """The largest error relative to the right value."""
    return float(((got.double() - want).abs() / want.abs()).max())


def test_exp_is_within_its_bound_everywhere(isa: str) -> None:
    """Relative error 3.1e-7 over [-87, 0], and 2 units in the last place over [-1, 0]."""
    x = -grid(2.0**-40, 87.0)[:-1]  # the last is -87 itself, where 0 begins
    got = mapped(isa, "exp", x)
    assert relative_error(got, torch.exp(x.double())) <= 3.1e-7
    near = x >= -1.0
    assert relative_error(got[near], torch.exp(x[near].double())) <= 4 * ULP
    assert mapped(isa, "exp", torch.tensor([0.0, -0.0])).tolist() == [1.0, 1.0]


def test_exp_is_zero_where_it_says_so(isa: str) -> None:
    """From -87 down, where the last results are subnormal, to -inf: exactly 0; NaN stays NaN."""
    x = -torch.cat([grid(87.0, 110.0), grid(110.0, 3.4028234e38)[::97]])
    assert mapped(isa, "exp", x).count_nonzero() == 0
    assert torch.exp(torch.tensor(-87.0, dtype=torch.float64)) < 1.7e-38
    ends = mapped(isa, "exp", torch.tensor([-3.4028235e38, float("-inf"), float("nan")]))
    assert ends[:2].tolist() == [0.0, 0.0]
    assert ends[2].isnan()


def test_tanh_is_within_its_bound_everywhere(isa: str) -> None:
    """Relative error 2.5e-7 from the least normal number to infinity, on both sides."""
    x = grid(2.0**-126, 3.4028234e38)
    for side in (x, -x):
        assert relative_error(mapped(isa, "tanh", side), torch.tanh(side.double())) <= 2.5e-7
    ends = mapped(isa, "tanh", torch.tensor([float("inf"), float("-inf"), float("nan"), 0.0]))
    assert ends[[0, 1, 3]].tolist() == [1.0, -1.0, 0.0]
    assert ends[2].isnan()


def test_powers_of_two_are_within_their_bounds(isa: str) -> None:
    """2^x: its error, its ends, and nothing where results are too small."""
    exact = 1.6e-7 if isa.startswith(("amx", "avx512")) else 2.4e-7
    x = torch.cat([-grid(2.0**-40, 126.0), torch.zeros(1), grid(2.0**-40, 120.0)])
    want = torch.exp2(x.double())
    assert relative_error(mapped(isa, "short exp2", x), want) <= 2.8e-6
    assert relative_error(mapped(isa, "exp2", x), want) <= exact
    # Subnormal results are as exact as their format, or zero.
    small = -grid(126.0, 160.0)
    for name in ("exp2", "short exp2"):
        error = (mapped(isa, name, small).double() - torch.exp2(small.double())).abs()
        assert float(error.max()) <= 2.0**-126
        ends = mapped(isa, name, torch.tensor([float("-inf"), -3.4028235e38, 0.0]))
        assert ends[:2].tolist() == [0.0, 0.0]
        assert abs(ends[2].item() - 1.0) <= 2.8e-6


def test_tanh_of_low_scores_is_within_its_bound(isa: str) -> None:
    """AVX-512 and AMX: relative error 7e-7 up to 0.5, and whatever is above is noticed."""
    if not isa.startswith(("amx", "avx512")):
        pytest.skip("only kernels with AVX-512 have it")
    x = grid(2.0**-126, 0.5)
    for side in (x, -x):
        assert relative_error(mapped(isa, "low tanh", side), torch.tanh(side.double())) <= 7e-7
    assert mapped(isa, "low tanh", torch.zeros(1)).item() == 0.0
    for high in (0.501, -0.501, 0.75, 3.4028234e38, float("inf"), float("-inf"), float("nan")):
        x = torch.full((40,), 0.25)
        x[13] = high
        noticed = mapped(isa, "low tanh", x).isnan().nonzero()
        assert 13 in noticed, f"{high} is taken as low"


@pytest.mark.multiprocess
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_softcap_and_alibi_give_the_right_weights(isa: str, dtype: str, tmp_path: Path) -> None:
    """Scores of any size, capped, biased or both: every weight, small ones too, as in float64."""
    ran = subprocess.run(
        [sys.executable, "-c", WEIGHTS.format(dtype=dtype)],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"MAINBOARD_CPU_ISA": isa},
    )
    assert ran.returncode == 0, ran.stderr


BYTES = """
import torch
from mainboard.kernels import attention

for stored in (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8):
    codes = torch.arange(256, dtype=torch.uint8).view(stored)
    for dtype in (torch.bfloat16, torch.float32):
        # A sequence of one key for each code, which stands in a place of its own.
        k, v = torch.zeros(256, 16, 1, 256).to(stored), torch.zeros(256, 16, 1, 256).to(stored)
        place = torch.arange(256)
        k[place, 0, 0, place] = codes
        v[:, 0, 0] = codes
        one = torch.ones(1)
        out, lse = attention(
            torch.ones(256, 1, 256, dtype=dtype), k, v, cu_seqlens_q=torch.arange(257).int(),
            seqused_k=torch.ones(256).int(), block_table=place[:, None].int(), max_seqlen_q=1,
            max_seqlen_k=1, softmax_scale=1.0, k_scale=one, v_scale=one, return_lse=True,
        )
        want = codes.float()
        finite = want.isfinite()
        torch.testing.assert_close(lse[0][finite], want[finite], rtol=0, atol=0)
        # Where the score is no number or infinite, so is the output.
        torch.testing.assert_close(
            out[finite, 0].float(), want.expand(256, 256)[finite], rtol=0, atol=0, equal_nan=True
        )
"""


@pytest.mark.multiprocess
def test_every_byte_is_read_as_what_it_means(isa: str, tmp_path: Path) -> None:
    """Each code of a one-byte cache, as a key and as a value, in decode."""
    ran = subprocess.run(
        [sys.executable, "-c", BYTES],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"MAINBOARD_CPU_ISA": isa},
    )
    assert ran.returncode == 0, ran.stderr

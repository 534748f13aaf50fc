"""The Triton kernels in Triton's interpreter, which runs them on the CPU, against float64.

The interpreter must be chosen before Triton is imported, so each test is a process. It has no
bfloat16 products; those cases run on a device (test_gpu_kernels.py).
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed"),
]

REQUIRED = """
import dataclasses, torch
from mainboard.kernels.validate import FNUZ_DTYPES
from mainboard.testing.attention_cases import check_case
from mainboard.testing.attention_list import REQUIRED
for dtype in FNUZ_DTYPES:
    check_case(dataclasses.replace(REQUIRED["float8_e5m2 cache"], cache_dtype=dtype))
skipped = torch.bfloat16, torch.int8  # too much for NumPy; for the CPU's own kernels alone
checked = [name for name, case in REQUIRED.items() if not {case.dtype, case.cache_dtype} & {*skipped}]
for name in checked:
    check_case(REQUIRED[name])
print(len(checked))
"""

DRAWN = """
import dataclasses, sys, torch
from mainboard.testing.attention_cases import check_case, draw_case
checked = 0
for seed in range(*map(int, sys.argv[1:])):
    case = draw_case(seed)
    if sum(case.queries) * case.heads * sum(case.keys) > 400_000:
        continue  # a minute in the interpreter
    dtype = torch.float16 if case.dtype is torch.bfloat16 else case.dtype
    check_case(dataclasses.replace(case, dtype=dtype))
    checked += 1
print(checked)
"""

CACHE = """
import torch
from mainboard.kernels import reference, reshape_and_cache
from mainboard.kernels.validate import FNUZ_DTYPES, FP8_DTYPES
torch.manual_seed(1)
for dtype in (torch.float16, torch.float32):
    for stored in (dtype, *FP8_DTYPES, *FNUZ_DTYPES):
        key, value = torch.randn(2, 12, 3, 40).to(dtype).unbind(0)
        key[3, 1, :5] = torch.tensor([float("nan"), 6e4, -6e4, 0.0, -0.0]).to(dtype)
        pair = [torch.randn(2, 16, 3, 40).to(stored) for _ in range(2)]
        slots = torch.randperm(32)[:12]
        slots[[0, 7]] = -1
        scales = (torch.rand(3) + 0.5, torch.tensor([0.25])) if stored is not dtype else (None, None)
        want = [x.clone() for x in pair]
        reference.reshape_and_cache(key, value, *want, slots, *scales)
        reshape_and_cache(key, value, *pair, slots, k_scale=scales[0], v_scale=scales[1])
        for got, expected in zip(pair, want, strict=True):
            assert torch.equal(got.view(torch.uint8), expected.view(torch.uint8)), stored
"""

EVERY_BIT = """
import torch, triton, triton.language as tl
from mainboard.kernels.reference import FP8_LIMITS
from mainboard.kernels.triton.device.numeric import Stored, narrow, widen

@triton.jit
def both(CODE, WIDE, X, NARROW, STORED: tl.constexpr):
    i = tl.arange(0, 256)
    tl.store(WIDE + i, widen(tl.load(CODE + i), tl.float32, STORED))
    j = tl.program_id(0) * 256 + i
    tl.store(NARROW + j, narrow(tl.load(X + j), STORED))

codes = torch.arange(256, dtype=torch.uint8)
# Every float16 is a value, and so are the midpoints between neighbours of every format.
x = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.float16).float()
for dtype, stored in zip(FP8_LIMITS, (Stored.E4M3, Stored.E5M2, Stored.E4M3FNUZ, Stored.E5M2FNUZ)):
    limited = x.clamp(-FP8_LIMITS[dtype], FP8_LIMITS[dtype])
    wide, code = torch.empty(256), torch.empty(2**16, dtype=torch.uint8)
    both[(256,)](codes, wide, limited, code, int(stored))
    want = codes.view(dtype).float()
    assert torch.equal(wide.nan_to_num(nan=1e9), want.nan_to_num(nan=1e9)) or dtype is torch.float8_e5m2
    finite = want.isfinite()
    assert torch.equal(wide[finite], want[finite]), dtype
    expected = limited.to(dtype).view(torch.uint8)
    number = ~limited.isnan()
    assert torch.equal(code[number], expected[number]), dtype
    assert code.view(dtype).float()[~number].isnan().all(), dtype
"""

LATENT = """
import sys, torch
from mainboard.kernels import concat_and_cache_mla, mla_decode, reference
from mainboard.kernels.triton import tiles
torch.manual_seed(3)
tiles.use("interpreted", "latent", 512, tiles.Tile(*eval(sys.argv[1]), **eval(sys.argv[2])))
for stored, scale in ((torch.float16, None), (torch.float8_e4m3fn, 0.5)):
    for heads, queries, keys in ((3, (1, 2, 0), (70, 5, 9)), (20, (1, 1, 1), (600, 0, 17))):
        latent, rotary = 64, 16
        cache = torch.full((50, 16, latent + rotary), float("nan")).half().to(stored)
        table = torch.randperm(50)[:45].view(3, 15) if max(keys) < 241 else None
        if table is None:
            table = torch.full((3, 40), -5)
            table[0, :38], table[2, :2] = torch.arange(38), torch.tensor([48, 45])
        rows = torch.randn(sum(keys), latent + rotary).half()
        slots = torch.cat([
            (table[i, :, None] * 16 + torch.arange(16)).flatten()[:n] for i, n in enumerate(keys)
        ])
        concat_and_cache_mla(rows[:, :latent], rows[:, latent:], cache, slots, kv_scale=scale)
        q = torch.randn(sum(queries), heads, latent + rotary).half()
        offsets = torch.tensor([0, *queries]).cumsum(0).int()
        used, table = torch.tensor(keys).int(), table.int()
        out, lse = mla_decode(
            q, cache, cu_seqlens_q=offsets, seqused_k=used, block_table=table, max_seqlen_q=2,
            max_seqlen_k=max(keys), softmax_scale=0.1, value_dim=latent, kv_scale=scale,
            return_lse=True,
        )
        want, want_lse = torch.empty(out.shape).double(), torch.empty(lse.shape).double()
        factor = None if scale is None else torch.tensor([scale])
        reference.mla_decode(
            q, cache, want, want_lse, offsets, used, table, 2, max(keys), 0.1, True, factor, False,
            precision=torch.float64,
        )
        torch.testing.assert_close(out.double(), want, rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(lse.double(), want_lse, rtol=1e-5, atol=1e-5)
"""

MERGE = """
import torch
from mainboard.kernels import merge_attention_states, reference
for dtype in (torch.float16, torch.float32):
    a, b = torch.randn(2, 37, 3, 40).to(dtype).unbind(0)
    a_lse, b_lse = torch.randn(2, 3, 37).unbind(0)
    b[3], b_lse[:, 3] = float("nan"), float("-inf")
    a_lse[:, 5] = b_lse[:, 5] = float("-inf")
    out, lse = merge_attention_states(a, a_lse, b, b_lse)
    want, want_lse = torch.empty_like(out), torch.empty_like(lse)
    reference.merge_attention_states(want, want_lse, a, a_lse, b, b_lse)
    torch.testing.assert_close(out, want)
    torch.testing.assert_close(lse, want_lse)
"""

ADDRESSES = """
import sys, torch
from mainboard.kernels.triton import tiles, works
from mainboard.testing.attention_cases import AttentionCase, check_case
if sys.argv[1] == "far":
    works._near = lambda *caches: False
else:
    for kind in ("decode", "prefill"):
        tiles.use("interpreted", kind, 64, tiles.Tile(32, 32, **{sys.argv[1]: True}))
for page in (16, 32, 48, 64, None):
    case = AttentionCase((3, 1, 0, 40), (70, 130, 9, 40), 4, 2, 64, dtype=torch.float16, page_size=page)
    check_case(case)
"""

SPLITS = """
import torch
from mainboard.kernels import attention
from mainboard.kernels.triton import plan
from mainboard.testing.attention_cases import AttentionCase
given = AttentionCase((2, 1), (1500, 90), 4, 2, 32, dtype=torch.float16).inputs()
found = []
for most in (1, 3, plan._MOST_SPLITS):
    plan._MOST_SPLITS = most
    plan.plan.cache_clear()
    found.append(attention(given.q, given.k, given.v, return_lse=True, **given.options))
for out, lse in found[1:]:
    torch.testing.assert_close(lse, found[0][1], rtol=0, atol=1e-5)
    torch.testing.assert_close(out, found[0][0], rtol=1e-3, atol=1e-3)
"""


def interpret(code: str, tmp_path: Path, *arguments: str, **settings: str) -> str:
    """What a program prints under the interpreter, away from the checkout."""
    if "triton.jit" in code:  # whose source Triton must find
        script = tmp_path / "program.py"
        script.write_text(code)
        command = [str(script), *arguments]
    else:
        command = ["-c", code, *arguments]
    environ = {k: v for k, v in os.environ.items() if not k.startswith("MAINBOARD_")}
    environ |= {"TRITON_INTERPRET": "1", "MAINBOARD_KERNELS": "triton"} | settings
    done = subprocess.run(
        [sys.executable, *command],
        check=False,
        env=environ,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow
def test_required_cases(tmp_path: Path) -> None:
    """Every required case that the interpreter can run agrees with float64."""
    assert int(interpret(REQUIRED, tmp_path)) > 40


@pytest.mark.slow
@pytest.mark.parametrize("first", [0, 40])
def test_drawn_cases(first: int, tmp_path: Path) -> None:
    """Drawn cases agree with float64."""
    assert int(interpret(DRAWN, tmp_path, str(first), str(first + 40))) > 20


def test_cache_holds_what_the_reference_holds(tmp_path: Path) -> None:
    """Every format gets the reference's bytes."""
    interpret(CACHE, tmp_path)


def test_every_code_of_every_8_bit_float(tmp_path: Path) -> None:
    """All codes are read, and all float16 values rounded, as torch does it."""
    interpret(EVERY_BIT, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "options"),
    [((32, 32), {}), ((32, 64), {"slice": 32}), ((32, 16), {"described": True})],
)
def test_latent_attention(
    sizes: tuple[int, int], options: dict[str, object], tmp_path: Path
) -> None:
    """Latent attention over rows written by its cache operator agrees with float64."""
    interpret(LATENT, tmp_path, str(sizes), str(options))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["far", "described"])
def test_every_way_to_find_rows(how: str, tmp_path: Path) -> None:
    """By 64-bit offsets, and by descriptors, over pages of any size."""
    interpret(ADDRESSES, tmp_path, how)


def test_merge(tmp_path: Path) -> None:
    """Two results are joined as the reference joins them."""
    interpret(MERGE, tmp_path)


def test_any_number_of_splits_gives_the_same(tmp_path: Path) -> None:
    """One, three and as many shares as suit agree in their log-sum-exp to 1e-5."""
    interpret(SPLITS, tmp_path)


def test_tiles_come_from_the_file_that_is_named(tmp_path: Path) -> None:
    """MAINBOARD_TILES replaces a tile of the table."""
    file = tmp_path / "tiles.json"
    code = """
from pathlib import Path
from mainboard.kernels.triton import tiles
assert tiles.tile("interpreted", "decode", 64).block_n == {n}
tiles.write(Path({file!r}), {{"interpreted": {{("decode", 64): tiles.Tile(16, 64)}}}})
"""
    interpret(code.format(n=32, file=str(file)), tmp_path)
    interpret(code.format(n=64, file=str(file)), tmp_path, MAINBOARD_TILES=str(file))


def test_a_damaged_file_of_tiles_is_refused(tmp_path: Path) -> None:
    """A file that holds no tiles is an error that names it."""
    file = tmp_path / "tiles.json"
    file.write_text('{"tiles": {"sm_90": {"prefill": {"128": {"block_x": 1}}}}}')
    code = """
from mainboard.errors import KernelUnavailableError
from mainboard.kernels.triton import tiles
try:
    tiles.tile("sm_90", "prefill", 128)
except KernelUnavailableError as error:
    print(error)
"""
    printed = interpret(code, tmp_path, MAINBOARD_TILES=str(file))
    assert f"MAINBOARD_TILES is {str(file)!r}, which is no file of tiles" in printed

"""The AMX kernels with their tile instructions emulated in C++ (`tests/kernels/amx`).

This shows that what the kernels do with the tiles is right, on any processor with AVX-512 BF16. It is
an emulation: it shows nothing about speed, and a processor with AMX runs `test_levels.py` instead.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECK = """
import dataclasses
from pathlib import Path
from mainboard import build_info

installed = build_info.library


def emulated(device):
    info = installed(device)
    return dataclasses.replace(info, path=Path({path!r})) if device == "cpu" else info


build_info.library = emulated
import torch
from mainboard.kernels import library
from mainboard.testing.attention_cases import AttentionCase, check_case, draw_case

assert library.libraries()[0].active == {isa!r}, library.libraries()[0]
"""
DRAWN = """
# 1207: float16 with few keys to a query, whose error nothing averages out.
for seed in (*range(0, 240), 1207):
    check_case(draw_case(seed))
"""
LONG = """
# Several chunks of keys, panels of queries and work items, and each way to make scores.
shape = {{"head_dim": 128, "dtype": getattr(torch, {dtype!r})}}
for options in (
    {{}},
    {{"softcap": 20.0}},
    {{"alibi": True}},
    {{"alibi": True, "causal": False}},
    {{"alibi": True, "softcap": 5.0}},
    {{"sinks": True, "window": (100, -1)}},
    {{"causal": (False, True)}},
    {{"causal": (True, False), "alibi": True, "window": (200, 30)}},
):
    check_case(AttentionCase((150, 40), (1200, 700), heads=8, kv_heads=1, **shape, **options))
# Blocks of queries that share packed keys: all of one key head, so that threads meet at a chunk.
for last, options in ((900, {{}}), (2000, {{"window": (1000, -1)}}), (900, {{"page_size": 32}})):
    check_case(AttentionCase((90, 400), (500, last), heads=8, kv_heads=1, **shape, **options))
# Smaller blocks for more threads, and ranges of keys whose rows are joined in pieces.
torch.set_num_threads(16)
check_case(AttentionCase((90, 400), (500, 900), heads=8, kv_heads=1, **shape))
check_case(AttentionCase((50,), (3000,), heads=8, kv_heads=1, **shape))
check_case(AttentionCase((300,), (300,), page_size=16, **shape))
check_case(AttentionCase((20,), (9000,), heads=4, kv_heads=1, **shape))
check_case(AttentionCase((70,), (300,), head_dim=192, value_dim=80, dtype=shape["dtype"]))
"""
RISING = """
# Scores that climb far out of range within a row, at once and step by step.
from mainboard.kernels import attention

for options in ({{}}, {{"window": (100, -1)}}, {{"softcap": 200.0}}, {{"alibi": True}}, {{"sinks": True}}):
    for factor in (8, 40):
        case = AttentionCase(
            (400,), (900,), heads=8, kv_heads=2, head_dim=128, dtype=getattr(torch, {dtype!r}), **options
        )
        given = case.inputs()
        given.k[130:300] *= factor
        given.k[300:] *= factor**2 if case.dtype is torch.bfloat16 else factor
        out, lse = attention(given.q, given.k, given.v, return_lse=True, **given.options)
        expected, expected_lse = case.expected(given)
        error = (out.double() - expected).norm() / expected.norm()
        assert error <= (2.8e-3 if case.dtype is torch.bfloat16 else 3e-4), (options, factor, error)
        torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-5, atol=1e-5)
"""
CALLERS = """
# Threads that call at the same time share no working memory, and a call gives what it gives alone.
from threading import Thread
from mainboard.kernels import attention

given = AttentionCase((400,), (900,), heads=8, kv_heads=1, dtype=torch.bfloat16).inputs()
call = lambda: attention(given.q, given.k, given.v, **given.options)
alone, results = call(), []
threads = [Thread(target=lambda: results.extend(call() for _ in range(4))) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert len(results) == 16 and all(torch.equal(result, alone) for result in results)
"""
FEW = """
# Few query rows: each way to fill a tile, each stored type, each way to make scores.
import ctypes

products = ctypes.CDLL(library.libraries()[0].path).mainboard_tile_products
products.restype = ctypes.c_int64
cache_dtype = {cache_dtype}
shape = dict(kv_heads=2, head_dim=128, dtype=torch.bfloat16, cache_dtype=cache_dtype, page_size=32)


def check(rows, options):
    group, tokens = rows
    lengths = (333, 64, 700)
    given = shape | options
    case = AttentionCase((tokens,) * 3, lengths, heads=given["kv_heads"] * group, **given)
    before = products()
    check_case(case)
    # In 64 keys, for 128 elements, 16 products of scores for each 16 rows of a key head and 16 of
    # values for each 16 rows of weights, which are there twice; of up to 8 rows in one tile.
    sets, last = divmod(group * tokens - 1, 16)
    most = 16 * (3 * sets + (3 if last >= 8 else 2))
    most *= sum(-(-n // 64) for n in lengths) * case.kv_heads * -(-case.head_dim // 128)
    taken = products() - before
    assert (0 < taken <= most) if group * tokens >= {fewest} else taken == 0, (rows, options, taken)


for rows in ((2, 1), (4, 1), (5, 1), (8, 1), (7, 2), (16, 1), (4, 5), (16, 2)):
    check(rows, {{}})
for options in (
    {{"softcap": 20.0}},
    {{"alibi": True}},
    {{"sinks": True, "window": (100, -1)}},
    {{"causal": False}},
    {{"window": (50, 3), "causal": False, "page_size": 128}},
    {{"scaled_cache": cache_dtype is not None}},
    {{"head_dim": 96, "value_dim": 64}},
    {{"head_dim": 256}},
    {{"kv_heads": 9, "head_dim": 64}},
):
    check((4, 1), options)
    check((4, 5), options)
# A float8 that is no number, among many that are: only those who see it know of it.
from mainboard.kernels import attention

for tokens in (1, 5) if cache_dtype in (torch.float8_e4m3fn, torch.float8_e5m2) else ():
    for name in ("k", "v"):
        given = AttentionCase((tokens,) * 2, (333, 64), heads=8, **shape).inputs()
        page = given.options["block_table"][0, 2]
        getattr(given, name).view(torch.uint8)[page, 5, 1, 7] = 0x7F
        lost = attention(given.q, given.k, given.v, **given.options).isnan()
        assert lost[:tokens, 4:, slice(None) if name == "k" else 7].all(), (tokens, name)
        assert not lost[:tokens, :4].any() and not lost[tokens:].any(), (tokens, name)
# Many rows over the same caches.
check_case(AttentionCase((300, 2), (500, 90), heads=8, **shape))
check_case(AttentionCase((900,), (900,), heads=4, **shape | {{"window": (200, -1)}}))
"""

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]


def run(code: str, isa: str, tmp_path: Path) -> None:
    """Run code in a fresh interpreter with kernels forced."""
    environ = os.environ | {"MAINBOARD_CPU_ISA": isa}
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        env=environ,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("isa", ["amx", "amx_fp16"])
def test_drawn_cases(emulated_library: Path, tmp_path: Path, isa: str) -> None:
    """The drawn cases, of every type, agree with float64."""
    run(CHECK.format(path=str(emulated_library), isa=isa) + DRAWN, isa, tmp_path)


@pytest.mark.parametrize(
    ("isa", "dtype"), [("amx", "bfloat16"), ("amx", "float16"), ("amx_fp16", "float16")]
)
def test_long_cases(emulated_library: Path, tmp_path: Path, isa: str, dtype: str) -> None:
    """Streams of many blocks agree with float64, in every way to make scores."""
    check = CHECK.format(path=str(emulated_library), isa=isa)
    run(check + LONG.format(dtype=dtype), isa, tmp_path)


@pytest.mark.parametrize(
    ("isa", "dtype"), [("amx", "bfloat16"), ("amx", "float16"), ("amx_fp16", "float16")]
)
def test_rising_scores(emulated_library: Path, tmp_path: Path, isa: str, dtype: str) -> None:
    """Weights that leave their range send a block back, and nothing is lost."""
    check = CHECK.format(path=str(emulated_library), isa=isa)
    run(check + RISING.format(dtype=dtype), isa, tmp_path)


def test_concurrent_calls(emulated_library: Path, tmp_path: Path) -> None:
    """Calls at the same time, each of whose items share packed keys, do not disturb each other."""
    run(CHECK.format(path=str(emulated_library), isa="amx") + CALLERS, "amx", tmp_path)


@pytest.mark.parametrize(
    "cache", ["None", "torch.float8_e4m3fn", "torch.float8_e5m2", "torch.int8"]
)
def test_few_rows(emulated_library: Path, tmp_path: Path, cache: str) -> None:
    """Decode and verification run on tiles, and agree with float64 over each stored type."""
    check = CHECK.format(path=str(emulated_library), isa="amx")
    run(check + FEW.format(cache_dtype=cache, fewest=3), "amx", tmp_path)

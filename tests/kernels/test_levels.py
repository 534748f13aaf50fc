"""What the environment settings force, each in a fresh interpreter."""

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mainboard import build_info
from mainboard.kernels import library

# Runs a case of each dtype, and says which kernels it ran on.
RAN = """
import ctypes, json, torch
from mainboard import kernels
from mainboard.testing.attention_cases import AttentionCase, check_case
ran = ctypes.CDLL(kernels.status()["libraries"][0]["path"]).mainboard_cpu_ran
ran.restype = ctypes.c_char_p
names = {}
for dtype in (torch.bfloat16, torch.float16, torch.float32):
    for queries in (1, 40):
        check_case(AttentionCase((queries,), (90,), dtype=dtype))
        names.setdefault(str(dtype)[6:], set()).add(ran().decode())
print(json.dumps({name: sorted(found) for name, found in names.items()}))
"""
CHECK_DRAWN = """
from mainboard.testing.attention_cases import check_case, draw_case
for seed in range({first}, {last}):
    check_case(draw_case(seed))
"""
LONG = """
import torch
from mainboard.kernels import attention
from mainboard.testing.attention_cases import AttentionCase
torch.set_num_threads(1)  # which takes all keys in one range
for dtype in (torch.bfloat16, torch.float16, torch.float32):
    case = AttentionCase((33,), (60000,), heads=2, kv_heads=1, dtype=dtype)
    given = case.inputs()
    _, lse = attention(given.q, given.k, given.v, return_lse=True, **given.options)
    error = (lse.double() - case.expected(given)[1]).abs().max().item()
    assert error <= 3e-6, (dtype, error)
"""
STATUS = "import json; from mainboard import kernels; print(json.dumps(kernels.status()))"
CALL = """
from mainboard.kernels import attention
from mainboard.testing.attention_cases import AttentionCase
given = AttentionCase((3, 4), (5, 40), page_size=16).inputs()
{change}
attention(given.q, given.k, given.v, **given.options)
"""


def run(code: str, tmp_path: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter, away from the checkout."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("MAINBOARD_")} | settings
    return subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        env=environ,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )


def usable() -> tuple[str, ...]:
    """Instruction sets that run on this machine."""
    return library.libraries()[0].usable


def limit(isa: str, what: str) -> float:
    """What a loop of the library does in a second."""
    loop = ctypes.CDLL(library.libraries()[0].path).mainboard_cpu_limit
    loop.restype = ctypes.c_double
    loop.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_double, ctypes.c_int64)
    return float(loop(isa.encode(), what.encode(), 0.01, 0))


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    "isa", ["amx_fp16", "amx", "avx512_bf16", "avx512_vbmi", "avx512", "avx2", "baseline"]
)
def test_forced_instruction_set_is_the_one_that_runs(isa: str, tmp_path: Path) -> None:
    """Each compiled variant can be forced by name, says so, and agrees with float64."""
    if isa not in usable():
        pytest.skip(f"{isa} is not compiled in or does not run on this processor: {usable()}")
    done = run(CHECK_DRAWN.format(first=5000, last=5120) + STATUS, tmp_path, MAINBOARD_CPU_ISA=isa)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["libraries"][0]["active"] == isa


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    "isa",
    [
        "amx_fp16",
        "amx",
        "avx512_bf16",
        "avx512_vbmi",
        "avx512",
        "avx2",
        "neon_bf16",
        "neon",
        "baseline",
    ],
)
def test_calls_run_on_the_forced_kernels(isa: str, tmp_path: Path) -> None:
    """Every call's own kernels are those that were asked for; what AMX cannot do, the next does."""
    if isa not in usable():
        pytest.skip(f"{isa} is not compiled in or does not run on this processor: {usable()}")
    done = run(RAN, tmp_path, MAINBOARD_CPU_ISA=isa)
    assert done.returncode == 0, done.stderr
    ran = json.loads(done.stdout)
    assert ran["bfloat16"] == [isa]
    allowed = {isa, "amx", "avx512_bf16", "avx512_vbmi"} if isa.startswith("amx") else {isa}
    assert {*ran["float16"], *ran["float32"]} <= allowed


@pytest.mark.multiprocess
@pytest.mark.parametrize("isa", ["amx", "avx512_bf16", "avx512", "avx2", "neon", "baseline"])
def test_sums_of_many_keys_do_not_drift(isa: str, tmp_path: Path) -> None:
    """What is kept of a sum from one block to the next is all of it, unless its reference moves."""
    if isa not in usable():
        pytest.skip(f"{isa} is not compiled in or does not run on this processor: {usable()}")
    done = run(LONG, tmp_path, MAINBOARD_CPU_ISA=isa)
    assert done.returncode == 0, done.stderr


@pytest.mark.multiprocess
def test_pairs_of_bfloat16_are_chosen_where_they_are_faster(tmp_path: Path) -> None:
    """Some processors multiply them at twice float32's rate, some at half: measured, not looked up."""
    if "avx512_bf16" not in usable() or "amx" in usable():
        pytest.skip(f"AVX-512 BF16 is not the best that this processor has: {usable()}")
    rates = {what: [limit("avx512_bf16", what) for _ in range(5)] for what in ("pair", "fma")}
    faster = max(rates["pair"]) >= 1.25 * max(rates["fma"])
    done = run(STATUS, tmp_path)
    active = json.loads(done.stdout)["libraries"][0]["active"]
    assert active == ("avx512_bf16" if faster else "avx512_vbmi")
    assert limit("avx512_vbmi", "pair") == 0.0


@pytest.mark.multiprocess
def test_wrong_instruction_set_is_an_error(tmp_path: Path) -> None:
    """A variant that is not there is refused with those that are."""
    done = run(STATUS, tmp_path, MAINBOARD_CPU_ISA="avx9000")
    assert done.returncode != 0
    assert "KernelUnavailableError: MAINBOARD_CPU_ISA is 'avx9000'" in done.stderr
    assert f"usable on this processor: {', '.join(usable())}" in done.stderr


@pytest.mark.multiprocess
def test_reference_can_be_forced(tmp_path: Path) -> None:
    """MAINBOARD_KERNELS=reference loads no library and still gives the right answers."""
    code = (
        CHECK_DRAWN.format(first=0, last=20)
        + "import torch\n"
        + "assert not torch._C._dispatch_has_kernel_for_dispatch_key('mainboard::attention', 'CPU')\n"
        + STATUS
    )
    done = run(code, tmp_path, MAINBOARD_KERNELS="reference")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["level"] == "reference"


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("level", "message"),
    [
        ("triton", "MAINBOARD_KERNELS is 'triton', but"),
        ("fast", "MAINBOARD_KERNELS is 'fast'; expected one of compiled, triton, reference"),
    ],
)
def test_levels_that_are_not_there_are_errors(level: str, message: str, tmp_path: Path) -> None:
    """A level that cannot be had is refused, not replaced."""
    done = run(STATUS, tmp_path, MAINBOARD_KERNELS=level)
    assert done.returncode != 0
    assert message in done.stderr


@pytest.mark.multiprocess
def test_library_that_does_not_load_falls_back_loudly(tmp_path: Path) -> None:
    """A damaged library leaves the reference running, with a warning that says why."""
    info = build_info.library("cpu")
    assert info is not None
    broken = tmp_path / info.path.name
    broken.write_bytes(b"not a library")
    code = f"""
import dataclasses, logging, pathlib
logging.basicConfig()
from mainboard import build_info
found = dataclasses.replace(build_info.library("cpu"), path=pathlib.Path({str(broken)!r}))
build_info.library = lambda device: found
""" + CHECK_DRAWN.format(first=0, last=3)
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Attention runs on the plain PyTorch reference, which is slow" in done.stderr
    assert f"{broken.name} does not load into torch" in done.stderr
    forced = run(code, tmp_path, MAINBOARD_KERNELS="compiled")
    assert "KernelUnavailableError: MAINBOARD_KERNELS is 'compiled', but" in forced.stderr


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("given.options['seqused_k'][1] = 99", "seqused_k[1] is 99; expected 0 to 80"),
        ("given.options['block_table'][1, 2] = -5", "block_table[1][2] is -5; expected 0 to"),
        ("given.options['cu_seqlens_q'][1] = 9", "cu_seqlens_q[1] is 9; expected ascending"),
    ],
)
def test_values_are_checked_on_request(change: str, message: str, tmp_path: Path) -> None:
    """MAINBOARD_CHECK=1 finds wrong lengths and pages on any device, the reference included."""
    done = run(
        CALL.format(change=change), tmp_path, MAINBOARD_CHECK="1", MAINBOARD_KERNELS="reference"
    )
    assert f"ValueError: {message}" in done.stderr

"""The CPU kernels without torch: cross-compiled for AArch64, and run there by an emulator.

A program of the tests drives each instruction set's kernels and compares them with float64. The
cases are drawn here and written to a file, one a line.
"""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from mainboard.testing.attention_cases import AttentionCase, draw_case
from mainboard.testing.attention_list import REQUIRED

ROOT = Path(__file__).parents[2]
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
LIBRARIES = "/usr/aarch64-linux-gnu"
# What each processor model of the emulator has: `a57` is plain ARMv8.0.
MODELS = {"neon_bf16": "max", "neon": "cortex-a57", "baseline": "cortex-a57"}
DRAWN = 100

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]


def line(name: str, case: AttentionCase) -> str:
    """A case as the driver reads it; strides are its own."""
    flags = case.causal if isinstance(case.causal, tuple) else (case.causal,) * len(case.keys)
    short = [str(d).removeprefix("torch.") for d in (case.dtype, case.cache_dtype or case.dtype)]
    numbers = [
        case.heads, case.kv_heads, case.head_dim, case.values, case.page_size or 0,
        *case.window, case.softcap, int(case.alibi), int(case.sinks),
        int(case.scaled_cache), int(case.deterministic), case.seed, len(case.keys),
        *case.queries, *case.keys, *map(int, flags),
    ]  # fmt: skip
    return " ".join([name.replace(" ", "-"), *short, *map(str, numbers)])


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, cross-compiled with every instruction set that the compiler has."""
    for tool in (COMPILER, EMULATOR, "cmake", "ninja"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed: apt-get install g++-aarch64-linux-gnu qemu-user")
    build = tmp_path_factory.mktemp("aarch64")
    configure = [
        "cmake", "-G", "Ninja", "-S", str(ROOT), "-B", str(build), "-DCMAKE_BUILD_TYPE=Release",
        "-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        f"-DCMAKE_CXX_COMPILER={COMPILER}", "-DMAINBOARD_CUDA=OFF",
    ]  # fmt: skip
    subprocess.run(configure, check=True, capture_output=True)
    # The library as well: everything that AArch64 gets must compile and link.
    targets = ["cpu_driver", "mainboard_cpu"]
    subprocess.run(
        ["cmake", "--build", str(build), "--target", *targets], check=True, capture_output=True
    )
    assert (build / "csrc/cpu/libmainboard_cpu.so").exists()
    return build / "csrc/cpu/cpu_driver"


def emulate(driver: Path, isa: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the driver on a model of a processor that has no more than the instruction set needs."""
    command = [EMULATOR, "-cpu", MODELS[isa], "-L", LIBRARIES, str(driver), isa, *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize("isa", MODELS)
def test_attention_on_aarch64(driver: Path, isa: str, tmp_path: Path) -> None:
    """Each instruction set, by name, is right on drawn cases and on every required one."""
    cases = {f"drawn {seed}": draw_case(seed) for seed in range(DRAWN)}
    lines = [line(name, case) for name, case in (cases | dict(REQUIRED)).items()]
    file = tmp_path / "cases"
    file.write_text("\n".join(lines) + "\n")
    ran = emulate(driver, isa, "attention", str(file))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.splitlines()[-1] == f"{isa}: {len(lines)} of {len(lines)} cases"


@pytest.mark.parametrize("isa", MODELS)
@pytest.mark.parametrize("what", ["functions", "rows"])
def test_parts_on_aarch64(driver: Path, isa: str, what: str) -> None:
    """Exponentials and tanh within 1e-6 of float64, and every format rounded to its nearest number."""
    ran = emulate(driver, isa, what)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.startswith(f"{isa}: ")


def test_a_processor_without_bfloat16_refuses_its_kernels(driver: Path) -> None:
    """What the processor lacks is found out before an instruction of it runs."""
    command = [EMULATOR, "-cpu", "cortex-a57", "-L", LIBRARIES, str(driver), "neon_bf16", "rows"]
    ran = subprocess.run(command, check=False, capture_output=True, text=True)
    assert ran.returncode == 3
    assert "neon_bf16 does not run here" in ran.stderr


def test_the_driver_fails_on_a_wrong_line(driver: Path, tmp_path: Path) -> None:
    """A file that it does not understand is not taken for a file without cases."""
    file = tmp_path / "cases"
    file.write_text("nonsense 1 2 3\n")
    assert emulate(driver, "neon", "attention", str(file)).returncode == 2
    file.write_text("")
    assert emulate(driver, "neon", "attention", str(file)).returncode == 1
    case = AttentionCase((3,), (9,), dtype=torch.bfloat16)
    file.write_text(line("one", case) + "\n")
    assert emulate(driver, "neon", "attention", str(file)).stdout == "neon: 1 of 1 cases\n"

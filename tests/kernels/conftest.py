"""A library that more than one file tests: the CPU's, with emulated AMX."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CPU_FLAGS = Path("/proc/cpuinfo")


@pytest.fixture(scope="session")
def emulated_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CPU library, built with emulated tiles."""
    flags = CPU_FLAGS.read_text().split() if CPU_FLAGS.exists() else []
    if not {"avx512_bf16", "avx512vbmi"} <= set(flags):
        pytest.skip("this processor has no AVX-512 BF16 or no VBMI")
    if shutil.which("cmake") is None or shutil.which("ninja") is None:
        pytest.skip("cmake or ninja is not installed")
    build = tmp_path_factory.mktemp("emulated")
    configure = ["cmake", "-G", "Ninja", "-S", str(ROOT), "-B", str(build)]
    subprocess.run(
        [*configure, "-DCMAKE_BUILD_TYPE=Release", "-DMAINBOARD_EMULATED_AMX=ON"], check=True
    )
    subprocess.run(["cmake", "--build", str(build)], check=True)
    return build / "csrc" / "cpu" / "libmainboard_cpu.so"

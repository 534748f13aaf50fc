"""The HIP library: what it says that it serves, its number formats on the host, and its loading.

It is compiled from the CUDA sources and was not run on hardware.
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mainboard import build_info
from mainboard.kernels import gpu_dispatch, hip_support
from mainboard.kernels.library import KernelLevel
from mainboard.kernels.reference import FP8_LIMITS
from mainboard.kernels.support import Choice, Implementation, Request
from mainboard.kernels.validate import FNUZ_DTYPES

ROOT = Path(__file__).parents[2]
REQUEST = Request("reshape_and_cache", "cuda", torch.bfloat16, page_size=16)


def test_operators_have_the_schemas_of_the_public_ones() -> None:
    """A call can be handed on as it is."""
    for name in hip_support.OPERATORS:
        own = getattr(torch.ops.mainboard_hip, name).default._schema
        public = getattr(torch.ops.mainboard, name).default._schema
        assert str(own).removeprefix("mainboard_hip") == str(public).removeprefix("mainboard")


@pytest.mark.parametrize("operator", hip_support.OPERATORS)
def test_memory_operators_are_served(operator: str) -> None:
    """Every cache, AMD's older 8-bit floats among them."""
    for cache in (None, *FP8_LIMITS):
        asked = replace(REQUEST, operator=operator, cache_dtype=cache)
        assert hip_support.refuses(asked) == []


@pytest.mark.parametrize("operator", ["attention", "mla_decode"])
def test_attention_is_left_to_triton(operator: str) -> None:
    """The refusal names the operator."""
    assert hip_support.refuses(replace(REQUEST, operator=operator)) == [f"has no {operator}"]


def test_routing_knows_which_library_has_which_formats(monkeypatch: pytest.MonkeyPatch) -> None:
    """AMD's library takes a cache of its older 8-bit floats, NVIDIA's refuses it."""
    from mainboard.kernels import library, support

    present = library.Library("hip", "/there", True, "loaded")
    monkeypatch.setattr(library, "loaded", lambda device: present)
    by_name = {one.name: one for one in support.implementations()}
    asked = replace(REQUEST, cache_dtype=FNUZ_DTYPES[0])
    assert by_name["compiled HIP"].refuses(asked) == []
    assert by_name["compiled CUDA"].refuses(asked) == ["a float8_e4m3fnuz cache is not compiled in"]


def test_a_call_on_amds_device_goes_to_the_librarys_operator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where torch is built for HIP, a compiled kernel is one of this library."""
    monkeypatch.setattr(torch.version, "hip", "7.0")
    for name in hip_support.OPERATORS:
        chosen = Choice(Implementation("compiled HIP", KernelLevel.COMPILED, lambda _: []), {})
        kernel = gpu_dispatch._kernel(name, chosen)
        assert kernel is getattr(torch.ops.mainboard_hip, name).default


@pytest.fixture(scope="module")
def codes(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.Tensor, bytes]:
    """Numbers that probe every format, and what HIP's kernels would store of them."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    program = tmp_path_factory.mktemp("hip") / "print_codes"
    source = Path(__file__).parent / "hip_numbers" / "print_codes.cpp"
    command = [compiler, "-std=c++17", "-O1", f"-I{ROOT}", str(source), "-o", str(program)]
    subprocess.run(command, check=True)
    # Every float16: all values of the formats, the midpoints between them, and what overflows.
    half = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.float16).float()
    bits = half.view(torch.int32)
    beside = torch.cat([bits - 1, bits + 1]).view(torch.float32)
    values = torch.cat([half, beside, torch.randn(4096) * 1e-3, torch.tensor([1e38, -1e38])])
    ran = subprocess.run([program], input=values.numpy().tobytes(), capture_output=True, check=True)
    return values, ran.stdout


def test_stored_numbers_are_torchs(codes: tuple[torch.Tensor, bytes]) -> None:
    """To nearest even, saturated, NaN kept: the codes that torch gives, for all four 8-bit floats."""
    values, stored = codes
    count = len(values)
    for place, (dtype, limit) in enumerate(FP8_LIMITS.items()):
        mine = torch.frombuffer(bytearray(stored), dtype=torch.uint8)[place * count :][:count]
        number = ~values.isnan()
        expected = values.clamp(-limit, limit).to(dtype).view(torch.uint8)
        assert torch.equal(mine[number], expected[number]), dtype
        assert mine.view(dtype).float()[~number].isnan().all(), dtype


def test_stored_bfloat16_is_torchs(codes: tuple[torch.Tensor, bytes]) -> None:
    """To nearest even."""
    values, stored = codes
    mine = torch.frombuffer(bytearray(stored[4 * len(values) :]), dtype=torch.bfloat16)
    number = ~values.isnan()
    assert torch.equal(mine[number], values[number].bfloat16())
    assert mine[~number].isnan().all()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("hipcc") is None, reason="hipcc is not installed")
def test_every_kernel_compiles_for_gfx90a_and_spills_nothing(tmp_path: Path) -> None:
    """By the compiler's own account of registers, scratch memory and local memory."""
    command = ["hipcc", "-x", "hip", "--offload-arch=gfx90a", "-O3", "-std=c++17", f"-I{ROOT}"]
    command += ["-Rpass-analysis=kernel-resource-usage", "-c", "-o", str(tmp_path / "cache.o")]
    ran = subprocess.run(
        [*command, str(ROOT / "csrc" / "cuda" / "cache.cu")],
        env=os.environ | {"HIP_PLATFORM": "amd"},
        capture_output=True,
        check=True,
        text=True,
    )
    found = re.findall(r"remark: .*?(\S[^:]*): (\S+) \[-Rpass", ran.stderr)
    kernels = [value for name, value in found if name == "Function Name"]
    for kernel in ("write_rows", "merge_rows"):
        assert any(kernel in name for name in kernels)
    for what in (
        "SGPRs Spill",
        "VGPRs Spill",
        "ScratchSize [bytes/lane]",
        "LDS Size [bytes/block]",
    ):
        assert [value for name, value in found if name == what] == ["0"] * len(kernels), what
    assert all(int(value) <= 64 for name, value in found if name == "VGPRs")


def test_the_library_loads_where_torch_has_no_hip() -> None:
    """It was linked to no library of torch's but the common one."""
    info = build_info.library("hip")
    if info is None:
        pytest.skip("the HIP kernels are not built here")
    program = (
        "import torch\n"
        "from mainboard.kernels import hip_support\n"
        f"torch.ops.load_library({str(info.path)!r})\n"
        "has = torch._C._dispatch_has_kernel_for_dispatch_key\n"
        "print(all(has(f'mainboard_hip::{n}', 'CUDA') for n in hip_support.OPERATORS))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, check=False
    )
    assert ran.stdout == "True\n", ran.stderr

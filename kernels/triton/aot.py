"""Kernels compiled ahead of time, for any architecture and without its device.

What is compiled is what a call would launch: the plan and its numbers are made for tensors without
memory, and specialised as Triton does at a launch. It shows what a tile takes of a device's
registers and shared memory; `spilled` must be 0.
"""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.tools.tensor_descriptor import TensorDescriptor

from mainboard.kernels.triton import plan
from mainboard.kernels.triton.launch import Launch, as_is
from mainboard.kernels.triton.works import Work, attention_work, describe, latent_work

__all__ = ["CASES", "Resources", "compile_case", "gpu_target", "tile_of"]

_TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int32: "i32",
    torch.uint8: "u8",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.float8_e5m2: "fp8e5",
    torch.float8_e4m3fnuz: "fp8e4b8",
    torch.float8_e5m2fnuz: "fp8e5b16",
}

CASES = (
    "prefill 64", "prefill 128", "prefill 256", "paged prefill 128", "decode 64", "decode 128",
    "decode 256", "fp8 decode 128", "latent 512", "combine 128",
)  # fmt: skip
"""What is compiled: kind of work, and head dimension."""


@dataclass(frozen=True)
class Resources:
    """What one kernel takes of a device, for a row of the table."""

    architecture: str
    case: str
    tile: str
    registers: int  # of a thread
    shared: int  # bytes of a program
    spilled: int  # bytes of a thread's stack on NVIDIA, registers on AMD


def gpu_target(architecture: str) -> GPUTarget:
    """The target of Triton for an architecture as `sm_90` or `gfx942`."""
    if architecture.startswith("sm_"):
        return GPUTarget("cuda", int(architecture.removeprefix("sm_")), 32)
    return GPUTarget("hip", architecture, 64 if architecture.startswith("gfx9") else 32)


def _empty(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _attention(dim: int, dtype: torch.dtype, cache: torch.dtype, page: int, queries: int) -> tuple[
    Work, tuple[Any, ...]
]:  # fmt: skip
    """The work of a batch of 8 sequences, causal, four heads to a key head, and its tensors."""
    batch, heads, kv_heads, keys = 8, 32, 8, 4096
    q = _empty(batch * queries, heads, dim, dtype=dtype)
    shape = (batch * keys // page, page) if page else (batch * keys,)
    k, v = (_empty(*shape, kv_heads, dim, dtype=cache) for _ in range(2))
    lengths = _empty(batch, dtype=torch.int32)
    table = _empty(batch, keys // page, dtype=torch.int32) if page else None
    scale = _empty(1, dtype=torch.float32) if cache != dtype else None
    work = attention_work(
        q, k, v, q, None, batch, table, queries, keys, dim**-0.5, -1, 0, 0.0, scale, scale, False,
        False, as_is,
    )  # fmt: skip
    assert work is not None
    descriptors = describe(work, (k, v))
    if work.as_bytes:
        k, v = k.view(torch.uint8), v.view(torch.uint8)
    part = None if work.combine is None else _empty(1, dtype=torch.float32)
    given = None if table is not None else lengths, lengths if table is not None else None, table
    tensors = (
        q,
        k,
        v,
        q,
        None,
        part,
        part,
        *descriptors,
        lengths,
        *given,
        None,
        None,
        scale,
        scale,
        None,
    )
    return work, tensors


def _latent(dtype: torch.dtype) -> tuple[Work, tuple[Any, ...]]:
    batch, heads, page, keys = 8, 64, 64, 4096
    q = _empty(batch, heads, 576, dtype=dtype)
    cache = _empty(batch * keys // page, page, 576, dtype=dtype)
    table, lengths = (_empty(batch, keys // page, dtype=torch.int32) for _ in range(2))
    out = _empty(batch, heads, 512, dtype=dtype)
    work = latent_work(q, cache, out, None, batch, table, 1, keys, 0.07, True, False, as_is)
    assert work is not None
    part = None if work.combine is None else _empty(1, dtype=torch.float32)
    descriptors = describe(work, (cache,))
    return work, (q, cache, out, None, part, part, *descriptors, lengths, lengths, table, None)


def _launch(case: str, architecture: str) -> tuple[Launch, tuple[Any, ...]]:
    """A case's launch on an architecture, and its tensors."""
    *kind, dim = case.split()
    dtype = torch.float16 if architecture == "sm_75" else torch.bfloat16
    if kind == ["latent"]:
        work, tensors = _latent(dtype)
    else:
        cache = torch.float8_e4m3fn if "fp8" in kind else dtype
        page = 16 if "paged" in kind or "prefill" not in kind else 0
        work, tensors = _attention(int(dim), dtype, cache, page, 4096 if "prefill" in kind else 1)
    if kind == ["combine"]:
        assert work.combine is not None
        return work.combine, (tensors[0], None, tensors[5], tensors[6], tensors[9])
    return work.main, tensors


def _source(launch: Launch, tensors: tuple[Any, ...]) -> ASTSource:
    """A launch's function, with its arguments' types and what is known of their values."""
    kernel = launch.kernel
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    known: dict[tuple[int, ...], Any] = {}
    arguments = (*tensors, *launch.numbers)
    for i, (parameter, value) in enumerate(zip(kernel.params, arguments, strict=True)):
        free = parameter.do_not_specialize
        one = type(value) is int and value == 1 and not free
        if parameter.is_constexpr or value is None or one:
            signature[parameter.name] = "constexpr"
            constants[i,] = value
        elif isinstance(value, Tensor):
            signature[parameter.name] = f"*{_TYPES[value.dtype]}"
            known[i,] = [["tt.divisibility", 16]]
        elif isinstance(value, TensorDescriptor):
            element = _TYPES[value.base.dtype]
            signature[parameter.name] = f"tensordesc<{element}{list(value.block_shape)}>"
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        else:
            signature[parameter.name] = "i32"
            if value % 16 == 0 and not free:
                known[i,] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature, constexprs=constants, attrs=known)


def _nvidia(binary: bytes) -> Iterator[int]:
    """Registers, and bytes of stack, by the disassembler that Triton brings."""
    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(binary)
        command = [str(program), "-res-usage", str(file)]
        report = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for name in ("REG", "STACK"):
        yield _number(rf"\b{name}:(\d+)", report)


def _amd(assembly: str) -> Iterator[int]:
    """Vector registers, and how many of any kind were spilled."""
    yield _number(r"\.vgpr_count:\s+(\d+)", assembly)
    spilled = [rf"\.{kind}_spill_count:\s+(\d+)" for kind in ("vgpr", "sgpr")]
    yield sum(_number(pattern, assembly) for pattern in spilled)


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"the compiler's report has no {pattern!r}: {text[:200]!r}")
    return int(found[1])


def compile_case(case: str, architecture: str) -> Resources:
    """Compile one of `CASES` for an architecture and say what it takes.

    Raises:
        triton.CompilationError: the architecture cannot have it.
    """
    with plan.pretending(architecture):
        launch, tensors = _launch(case, architecture)
        source = _source(launch, tensors)
    options = dict(launch.options)
    made = triton.compile(source, target=gpu_target(architecture), options=options)
    registers, spilled = (
        _nvidia(made.asm["cubin"]) if "cubin" in made.asm else _amd(made.asm["amdgcn"])
    )
    tile = _tile(launch, tensors)
    return Resources(architecture, case, tile, registers, int(made.metadata.shared), spilled)


def tile_of(case: str, architecture: str) -> str:
    """How one of `CASES` is cut up on an architecture, as `compile_case` says it."""
    with plan.pretending(architecture):
        return _tile(*_launch(case, architecture))


def _tile(launch: Launch, tensors: tuple[Any, ...]) -> str:
    names = (parameter.name for parameter in launch.kernel.params)
    constants = dict(zip(names, (*tensors, *launch.numbers), strict=True))
    sizes = [
        constants[n] for n in ("BLOCK_M", "BLOCK_N", "SPLITS_PAD", "BLOCK_D") if n in constants
    ]
    stages = launch.options.get("num_stages")
    name = "x".join(map(str, sizes)) + f", {launch.options['num_warps']} warps"
    return name + (f", {stages} stages" if stages else "")

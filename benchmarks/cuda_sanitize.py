"""Run compute-sanitizer's four tools over a short list of the compiled CUDA operators' cases.

`python benchmarks/cuda_sanitize.py [--library FILE] [--parts P ...] [--dims N ...] [--tools T ...]`:
the tools run side by side, and the script fails unless each of them finds nothing. The list takes
every kernel that a head dimension has, and every way in which their blocks work together;
`cuda_decode.py --check` and `cuda_latent.py --check` compare the results.
"""

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

TOOLS = {
    "memcheck": ["--kernel-name-exclude", "kns=at::"],
    "racecheck": ["--kernel-name-exclude", "kns=at::", "--racecheck-report", "all"],
    "initcheck": [],  # what torch's own kernels write must be known
    "synccheck": ["--kernel-name-exclude", "kns=at::"],
}
CLEAN = re.compile(r"ERROR SUMMARY: 0 errors|RACECHECK SUMMARY: 0 hazards displayed")


PARTS = ("attention", "latent", "memory")


def run_cases(library: str | None, dims: list[int], parts: list[str]) -> None:
    """Every case once; what it computes is checked elsewhere."""
    import cuda_decode
    import cuda_latent
    import torch

    if library:
        torch.ops.load_library(library)
    else:
        from mainboard.kernels import library as installed

        print(installed.loaded("cuda").reason)
    count = 0
    for case in short_list(dims) if "attention" in parts else ():
        call, _ = cuda_decode.arguments(case, "cuda")
        torch.ops.mainboard_cuda.attention(*call)
        count += 1
    for case in short_latent_list() if "latent" in parts else ():
        given = case.inputs("cuda")
        torch.ops.mainboard_cuda.mla_decode(
            *cuda_latent.arguments(case, given, case.dtype, torch.float32)
        )
        count += 1
    if "memory" in parts:
        move_memory()
    torch.cuda.synchronize()
    print(f"{count} cases")


def short_list(dims: list[int]) -> Iterator["cuda_decode.AttentionCase"]:  # noqa: F821
    """Cases for each kernel: joined in clusters, through memory, in groups, and not at all."""
    import torch
    from cuda_decode import BF16, E4M3, AttentionCase

    # One tile to a cluster; tiles too uneven for that; more tiles than clusters; very many pieces;
    # two key heads side by side, or eight, where there is a kernel for that; large pieces, by blocks
    # with a multiprocessor each; more sequences than are planned for ahead.
    batches: list[tuple[tuple[int, ...], tuple[int, ...], int]] = [
        ((1, 1, 0, 1, 1), (700, 33, 40, 0, 900), 2),
        ((1, 1), (9000, 1), 1),
        ((1,) * 40, tuple(range(1, 800, 20)), 4),
        ((1,) * 40, (5400, *range(1, 400, 10))[:40], 8),
        ((1,), (40000,), 1),
        ((1,) * 20, tuple(range(1, 2000, 100)), 2),
        ((3, 5, 1), (300, 70, 5), 2),
        ((9, 16, 2), (300, 70, 5), 2),
        ((4, 1, 3), (9000, 300, 700), 2),
        ((2,), (40000,), 1),
        ((1,) * 257, (20,) * 257, 1),
    ]
    for dim in dims:
        base = AttentionCase((1,), (1,), 8, 2, dim, dtype=BF16, page_size=16)
        for queries, keys, kv_heads in batches:
            case = replace(base, queries=queries, keys=keys, heads=4 * kv_heads, kv_heads=kv_heads)
            yield case
            yield replace(case, cache_dtype=E4M3, scaled_cache=True, page_size=32)
        # Prefill, with decode beside it.
        long = replace(base, queries=(40, 200, 3), keys=(300, 700, 31))
        yield long
        yield replace(long, cache_dtype=E4M3, scaled_cache=True, page_size=32)
        yield replace(long, causal=(True, False, True))
        yield replace(base, queries=(4, 1), keys=(900, 40), deterministic=True)
        yield replace(base, queries=(4, 1), keys=(900, 40), page_size=None, window=(30, 4),
                      softcap=20.0, alibi=True, sinks=True, causal=False)  # fmt: skip
    torch.cuda.synchronize()


def short_latent_list() -> Iterator["cuda_decode.AttentionCase"]:  # noqa: F821
    """Cases for the latent kernel: tiles in one piece, in a few, and joined in groups."""
    from cuda_decode import BF16, AttentionCase

    base = AttentionCase((1,), (150,), 16, 1, 576, 512, dtype=BF16, page_size=16)
    yield replace(base, queries=(2, 1, 1), keys=(150, 0, 1))
    yield replace(base, keys=(2200,), page_size=64)
    yield replace(base, keys=(400,), heads=128, page_size=64)
    yield replace(base, keys=(1100,), heads=128, deterministic=True)


def move_memory() -> None:
    """The operators that only move memory, on sizes that fill no block."""
    import torch

    operators = torch.ops.mainboard_cuda
    for dim in (128, 20):
        key, value = torch.randn(2, 45, 3, dim, device="cuda").bfloat16().unbind(0)
        slots = torch.randperm(64, device="cuda")[:45]
        slots[7] = -1
        scale = torch.tensor([0.5], device="cuda")
        for dtype in (torch.bfloat16, torch.float8_e4m3fn):
            caches = [torch.zeros(4, 16, 3, dim, device="cuda").to(dtype) for _ in "kv"]
            operators.reshape_and_cache(key, value, *caches, slots, scale, scale)
            operators.copy_blocks(caches, torch.tensor([[0, 2], [-1, 1]], device="cuda"))
        lse = torch.randn(2, 3, 45, device="cuda")
        lse[0, 0, 3] = float("-inf")
        out, out_lse = torch.empty_like(key), torch.empty_like(lse[0])
        operators.merge_attention_states(out, out_lse, key, lse[0], value, lse[1])
    latent, rotary = (torch.randn(45, n, device="cuda").bfloat16() for n in (512, 64))
    cache = torch.zeros(4, 16, 576, dtype=torch.bfloat16, device="cuda")
    operators.concat_and_cache_mla(latent, rotary, cache, slots, None)


def start(tool: str, arguments: list[str]) -> subprocess.Popen[str]:
    """One tool over the cases, in a process of its own."""
    command = ["compute-sanitizer", "--tool", tool, *TOOLS[tool], sys.executable, __file__]
    # Each tensor in memory of its own, so that its ends are known.
    environment = os.environ | {
        "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",
        "PYTHONPATH": os.pathsep.join(
            filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")])
        ),
    }
    return subprocess.Popen(
        [*command, "--cases", *arguments], env=environment, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip


def main() -> None:
    """Run the tools, or as their child the cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", action="store_true", help="only run the cases, under no tool")
    parser.add_argument("--library", help="a library to load instead of the installed one")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--dims", type=int, nargs="*", default=[64, 128, 256])
    parser.add_argument("--tools", nargs="*", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--seconds", type=int, default=300, help="that a tool may take")
    parser.add_argument("--lines", type=int, default=12, help="what to show of a tool's report")
    options = parser.parse_args()
    if options.cases:
        run_cases(options.library, options.dims, options.parts)
        return
    arguments = ["--parts", *options.parts, "--dims", *map(str, options.dims)]
    arguments += ["--library", options.library] if options.library else []
    running = {tool: start(tool, arguments) for tool in options.tools}
    unclean = []
    for tool, process in running.items():
        try:
            report, _ = process.communicate(timeout=options.seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            report = f"killed after {options.seconds} s"
        clean = process.returncode == 0 and CLEAN.search(report) is not None
        if not clean:
            unclean.append(tool)
            print(f"--- {tool}", *report.splitlines()[: options.lines], sep="\n")
        print(f"{tool}: {report.strip().splitlines()[-1]}", flush=True)
    sys.exit(bool(unclean))


if __name__ == "__main__":
    main()

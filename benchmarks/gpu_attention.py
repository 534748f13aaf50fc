"""Attention on a GPU: every implementation of Mainboard, and torch's peers, in one run.

Medians of triton's do_bench, which empties the L2 cache before each call. Prefill has batch times
length = 16,384 tokens; decode reads a paged cache in a drawn order.

    python benchmarks/gpu_attention.py [--rows REGEX] [--implementations compiled,triton,...]
        [--milliseconds N] [--json FILE]

FILE gets the rows and the machine; the table is printed. `--latency` measures instead how long the
first calls take, with Triton's cache empty and full.
"""

import argparse
import functools
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch
import triton
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as sdpa
from triton.testing import do_bench

TOKENS = 16384
Call = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """One shape: `queries` new tokens at the end of `keys`, in each of `batch` sequences."""

    batch: int
    queries: int
    keys: int
    heads: int = 32
    kv_heads: int = 8
    dim: int = 128
    causal: bool = True
    page: int | None = None
    latent: int = 0  # values are the first so many entries of a key

    @property
    def name(self) -> str:
        """As in the tables of published results."""
        where = f" page{self.page}" if self.page else " causal" if self.causal else " full"
        kind = "mla " if self.latent else ""
        return (
            f"{kind}B{self.batch} L{self.keys} nq{self.queries} Hq{self.heads} Hk{self.kv_heads} "
            f"D{self.dim}{where}"
        )

    @property
    def flops(self) -> float:
        """Of both products; causal counts half of what is square."""
        seen = self.queries * self.keys
        if self.causal:
            seen -= self.queries * self.queries / 2
        return 2.0 * self.batch * self.heads * seen * (self.dim + (self.latent or self.dim))

    @property
    def bytes(self) -> int:
        """Keys and values in 16 bits, read once."""
        entries = self.dim if self.latent else 2 * self.dim
        return self.batch * self.keys * self.kv_heads * entries * 2


def prefill_rows() -> Iterator[Row]:
    """Dense causal and full attention."""
    for length in (512, 1024, 2048, 4096, 8192, 16384):
        yield Row(TOKENS // length, length, length)
    for length in (2048, 16384):
        yield Row(TOKENS // length, length, length, causal=False)
        for heads, kv_heads, dim in ((32, 8, 64), (16, 4, 256)):
            for causal in (True, False):
                yield Row(TOKENS // length, length, length, heads, kv_heads, dim, causal)


def paged_rows() -> Iterator[Row]:
    """Decode, verification of several tokens and chunked prefill over pages, and latent decode."""
    for batch, keys in ((1, 1024), (1, 8192), (1, 131072), (8, 1024), (8, 8192), (64, 1024),
                        (64, 8192), (256, 1024), (256, 4096)):  # fmt: skip
        yield Row(batch, 1, keys, page=16)
    yield Row(64, 1, 8192, page=64)
    yield Row(64, 1, 8192, 64, 8, 64, page=16)
    yield Row(64, 1, 8192, 32, 32, 128, page=16)
    yield Row(64, 1, 4096, 16, 4, 256, page=16)
    yield Row(64, 4, 8192, page=16)
    yield Row(1, 512, 8192, page=16)
    yield Row(4, 2048, 8192, page=16)
    yield Row(16, 256, 2048, page=16)
    for batch, heads in ((1, 16), (64, 16), (64, 64), (64, 128)):
        yield Row(batch, 1, 8192, heads, 1, 576, page=64, latent=512)


def offsets(batch: int, length: int) -> Tensor:
    """Where sequences of one length begin."""
    return torch.arange(batch + 1, dtype=torch.int32, device="cuda") * length


@functools.cache
def operator(level: str, name: str) -> Callable[..., None] | None:
    """One implementation of an operator; None where it is not there."""
    from mainboard.kernels import library

    if level == "compiled":
        device = "hip" if torch.version.hip else "cuda"
        if not library.loaded(device).loaded:
            return None
        importlib.import_module(f"mainboard.kernels.{device}_support")  # declares the operators
        namespace = getattr(torch.ops, f"mainboard_{device}")
        return getattr(namespace, name).default if hasattr(namespace, name) else None
    if level == "triton":
        from mainboard.kernels.triton import operators

        return getattr(operators, name)
    return getattr(torch.ops.mainboard, name).default  # what is chosen


def arguments(row: Row) -> tuple[str, tuple[object, ...]]:
    """The operator for a row and its arguments, bfloat16."""
    torch.manual_seed(0)
    options = {"dtype": torch.bfloat16, "device": "cuda"}
    q = torch.randn(row.batch * row.queries, row.heads, row.dim, **options)
    begins = offsets(row.batch, row.queries)
    if row.page is None:
        k, v = torch.randn(2, row.batch * row.keys, row.kv_heads, row.dim, **options).unbind(0)
        lengths = begins, offsets(row.batch, row.keys), None, None
    else:
        pages = row.batch * row.keys // row.page
        table = torch.randperm(pages, device="cuda").int().view(row.batch, -1)
        used = torch.full((row.batch,), row.keys, dtype=torch.int32, device="cuda")
        if row.latent:
            cache = torch.randn(pages, row.page, row.dim, **options)
            out = q.new_empty(*q.shape[:-1], row.latent)
            return "mla_decode", (
                q, cache, out, None, begins, used, table, row.queries, row.keys, 192**-0.5, True,
                None, False,
            )  # fmt: skip
        k, v = torch.randn(2, pages, row.page, row.kv_heads, row.dim, **options).unbind(0)
        lengths = begins, None, used, table
    return "attention", (
        q, k, v, torch.empty_like(q), None, *lengths, row.queries, row.keys, row.dim**-0.5,
        row.causal, -1, -1, 0.0, None, None, None, None, False,
    )  # fmt: skip


def peer(backend: SDPBackend, row: Row) -> Call | None:
    """One of torch's own, on contiguous head-major keys; None where it has no such case."""
    if row.latent or (row.page and row.queries > 1):
        return None
    options = {"dtype": torch.bfloat16, "device": "cuda"}
    q = torch.randn(row.batch, row.heads, row.queries, row.dim, **options)
    shape = 2, row.batch, row.kv_heads, row.keys, row.dim
    k, v = torch.randn(shape, **options).unbind(0)
    causal = row.causal and row.queries == row.keys

    def call() -> object:
        with sdpa_kernel(backend):
            return sdpa(q, k, v, is_causal=causal, enable_gqa=row.heads != row.kv_heads)

    return call


PEERS = {"sdpa flash": SDPBackend.FLASH_ATTENTION, "sdpa cudnn": SDPBackend.CUDNN_ATTENTION}


def calls(row: Row, implementations: list[str]) -> Iterator[tuple[str, Call]]:
    """What is timed for a row."""
    name, given = arguments(row)
    for level in implementations:
        if level in PEERS:
            call = peer(PEERS[level], row)
            if call is not None:
                yield level, call
        elif (run := operator(level, name)) is not None:
            yield level, functools.partial(run, *given)


def measure(row: Row, implementations: list[str], milliseconds: int) -> dict[str, object]:
    """Medians in microseconds, with the rate that the row is about."""
    found: dict[str, object] = {"row": row.name, **asdict(row)}
    for name, call in calls(row, implementations):
        try:
            call()
        except RuntimeError as error:
            found[name] = {"failure": str(error).splitlines()[0]}
            continue
        spent = do_bench(call, warmup=milliseconds // 2, rep=milliseconds, return_mode="median")
        found[name] = {
            "us": spent * 1e3,
            "tflops": row.flops / spent / 1e9,
            "gbs": row.bytes / spent / 1e6,
        }
    torch.cuda.empty_cache()
    return found


def table(rows: list[dict[str, object]], implementations: list[str]) -> str:
    """The rows in Markdown: TFLOP/s where queries are many, GB/s of cache where they are few."""
    lines = [
        "| shape | " + " | ".join(implementations) + " |",
        "|--" * (len(implementations) + 1) + "|",
    ]
    for row in rows:
        unit, rate = ("gbs", "GB/s") if row["queries"] <= 16 else ("tflops", "TFLOP/s")
        cells = []
        for name in implementations:
            result = row.get(name)
            if result is None or "failure" in result:
                cells.append("-")
            elif unit == "gbs":
                cells.append(f"{result['us']:.1f} µs, {result[unit]:.0f} {rate}")
            else:
                cells.append(f"{result[unit]:.1f} {rate}")
        lines.append(f"| {row['row']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


FIRST_CALL = """
import time
begin = time.perf_counter()
import torch
from mainboard.kernels import attention
q, k, v = torch.randn(3, 512, 8, 128, device="cuda").bfloat16().unbind(0)
o = torch.tensor([0, 512], device="cuda").int()
torch.cuda.synchronize()
ready = time.perf_counter()
def call():
    attention(q, k, v, cu_seqlens_q=o, cu_seqlens_k=o, max_seqlen_q=512, max_seqlen_k=512)
    torch.cuda.synchronize()
call()
first = time.perf_counter()
call()
second = time.perf_counter()
for _ in range(200):
    attention(q, k, v, cu_seqlens_q=o, cu_seqlens_k=o, max_seqlen_q=512, max_seqlen_k=512)
host = time.perf_counter()
print((first - ready) * 1e3, (second - first) * 1e3, (host - second) / 200 * 1e6)
"""


def latency() -> dict[str, list[float]]:
    """Milliseconds of the first and second call, and microseconds of the host for a later one."""
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        environ = os.environ | {"MAINBOARD_KERNELS": "triton", "TRITON_CACHE_DIR": folder}
        for state in ("cache empty", "cache full", "cache full again"):
            ran = subprocess.run(
                [sys.executable, "-c", FIRST_CALL],
                env=environ,
                check=True,
                capture_output=True,
                text=True,
            )
            results[state] = [float(x) for x in ran.stdout.split()]
    return results


def ceilings() -> dict[str, float]:
    """The card's own: copy in GB/s read and written, bf16 product in TFLOP/s."""
    x = torch.empty(2**31, dtype=torch.uint8, device="cuda")
    y = torch.empty_like(x)
    copied = do_bench(lambda: y.copy_(x), return_mode="median")
    a, b = torch.randn(2, 8192, 8192, device="cuda", dtype=torch.bfloat16).unbind(0)
    product = do_bench(lambda: a @ b, return_mode="median")
    return {
        "copy GB/s": 2 * x.numel() / copied / 1e6,
        "product TFLOP/s": 2 * 8192**3 / product / 1e9,
    }


def main() -> None:
    """Measure what was asked for and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="", help="rows whose name matches")
    parser.add_argument("--implementations", default="compiled,triton,sdpa flash,sdpa cudnn")
    parser.add_argument("--milliseconds", type=int, default=100)
    parser.add_argument("--json", help="file for everything measured")
    parser.add_argument("--latency", action="store_true")
    options = parser.parse_args()
    begin = time.perf_counter()
    import mainboard.kernels.ops  # noqa: F401  (loads the libraries)

    implementations = options.implementations.split(",")
    machine = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        **ceilings(),
    }
    document: dict[str, object] = {"machine": machine}
    print(machine)
    if options.latency:
        document["latency"] = latency()
        print(document["latency"])
    rows = [row for row in (*prefill_rows(), *paged_rows()) if re.search(options.rows, row.name)]
    results = [measure(row, implementations, options.milliseconds) for row in rows]
    document["rows"] = results
    print(table(results, implementations))
    print(f"\n{time.perf_counter() - begin:.0f} s in all")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(document, file, indent=1)


if __name__ == "__main__":
    main()

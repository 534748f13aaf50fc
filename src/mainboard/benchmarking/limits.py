"""What this very machine can do at most, measured before and after what is compared with it.

On a CPU the compiled library has a loop for each limit, per instruction set, run on torch's threads:
reading memory in order, multiplying without memory, exponentials. A matrix peak is the better of
that loop and of torch's own product. On a GPU it is a copy and a product of 8192 x 8192.
"""

import ctypes
import os
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch

from mainboard.benchmarking.rows import Row
from mainboard.benchmarking.timing import Clock, interleaved
from mainboard.kernels import library

__all__ = ["Bound", "Limits", "measure_limits"]

_GPU_PRODUCT = 8192
_READ_BYTES = 1 << 30
_SOFTENED_FLOPS = 2 * (128 + 128)  # for each exponential


@dataclass(frozen=True)
class Bound:
    """The least time that a row can take, and what it is bound by."""

    seconds: float
    by: str


@dataclass(frozen=True)
class Limits:
    """Bytes, multiply-adds times two and exponentials per second; 0 is unknown.

    Args:
        bandwidth: of reading; on a GPU of a copy, read and written.
        products: by the operands' dtype.
        exponentials: of the kernels' own function.
        softened: products of bfloat16 on matrix tiles that share the processor with the exponentials
            of a head dimension of 128.
        details: each measurement by its name, in the same units.
    """

    bandwidth: float
    products: dict[str, float]
    exponentials: float = 0.0
    softened: float = 0.0
    details: dict[str, float] = field(default_factory=dict)

    def bound(self, row: Row) -> Bound:
        """The roofline's: no row is faster than its slowest part would be alone."""
        product = self.products.get(str(row.case.dtype).removeprefix("torch."), 0.0)
        parts = {
            "memory": (0 if row.warm else row.bytes, self.bandwidth),
            "products": (row.flops, product),
            "exponentials": (row.exponentials, self.exponentials),
        }
        if row.case.dtype is torch.bfloat16 and row.flops <= _SOFTENED_FLOPS * row.exponentials:
            parts["products and exponentials"] = (row.flops, self.softened)
        seconds = {name: work / rate for name, (work, rate) in parts.items() if rate > 0}
        by = max(seconds, key=lambda name: seconds[name])
        return Bound(seconds[by], by)

    def better(self, other: "Limits") -> "Limits":
        """The larger of each: what held one measurement back may have spared the other."""
        return Limits(
            max(self.bandwidth, other.bandwidth),
            _larger(self.products, other.products),
            max(self.exponentials, other.exponentials),
            max(self.softened, other.softened),
            _larger(self.details, other.details),
        )

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self)


def _larger(a: dict[str, float], b: dict[str, float]) -> dict[str, float]:
    return {name: max(a.get(name, 0.0), b.get(name, 0.0)) for name in a | b}


def _product(dtype: torch.dtype, size: int, device: str, clock: Clock, seconds: float) -> float:
    """Operations per second of torch's product of two square matrices."""
    a, b = torch.randn(2, size, size, device=device).to(dtype).unbind(0)
    out = torch.empty_like(a)
    call = partial(torch.mm, a, b, out=out)
    call()
    return 2.0 * size**3 / interleaved([call], clock, seconds)[0].median


def _best_product(dtype: torch.dtype, clock: Clock) -> float:
    """The largest size is the fastest, unless torch has no fast product of this dtype at all."""
    best = 0.0
    for size in (512, 1024, 2048, 4096):
        best = max(best, _product(dtype, size, "cpu", clock, 0.1))
        if 2.0 * (2 * size) ** 3 / best > 0.5:
            break
    return best


def _cpu(dtypes: set[torch.dtype], clock: Clock) -> Limits:
    details: dict[str, float] = {}
    found = library.loaded("cpu")
    if found.loaded:
        loop = ctypes.CDLL(found.path).mainboard_cpu_limit
        loop.restype = ctypes.c_double
        loop.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_double, ctypes.c_int64)
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        for isa in found.usable[found.usable.index(found.active or found.usable[0]) :]:
            for what in ("read", "fma", "pair", "tile", "exp", "mix"):
                seconds = 0.6 if what == "read" else 0.15
                if what == "read" and details:
                    continue  # reads are as fast with any of them
                rate = loop(isa.encode(), what.encode(), seconds, min(_READ_BYTES, free // 3))
                if rate > 0:
                    details[f"{what} {isa}"] = rate
    for dtype in dtypes:
        details[f"torch.mm {_short(dtype)}"] = _best_product(dtype, clock)
    multiply = _largest(details, "fma")
    products = {
        _short(dtype): max(
            details[f"torch.mm {_short(dtype)}"],
            multiply,
            # float16 goes through the tiles as well, in parts.
            _largest(details, "tile") if dtype.itemsize == 2 else 0.0,
            _largest(details, "pair") if dtype is torch.bfloat16 else 0.0,
        )
        for dtype in dtypes
    }
    read = _largest(details, "read") or _sum_bandwidth(clock)
    softened = _largest(details, "mix")
    return Limits(read, products, _largest(details, "exp"), softened, details)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _largest(details: dict[str, float], what: str) -> float:
    return max((rate for name, rate in details.items() if name.startswith(what)), default=0.0)


def _sum_bandwidth(clock: Clock) -> float:
    """Without the compiled library: torch's sum, which reads and does little else."""
    x = torch.zeros(_READ_BYTES // 4)
    x.sum()
    return x.numel() * 4 / interleaved([x.sum], clock, 0.5)[0].median


def _gpu(device: str, dtypes: set[torch.dtype], clock: Clock) -> Limits:
    x = torch.zeros(2 * _READ_BYTES, dtype=torch.uint8, device=device)
    y = torch.empty_like(x)
    y.copy_(x)
    copied = 2 * x.numel() / interleaved([lambda: y.copy_(x)], clock, 0.2)[0].median
    products = {
        _short(dtype): _product(dtype, _GPU_PRODUCT, device, clock, 0.2) for dtype in dtypes
    }
    details = {f"torch.mm {name}": rate for name, rate in products.items()}
    return Limits(copied, products, details={"copy": copied, **details})


def measure_limits(device: str, dtypes: set[torch.dtype], clock: Clock) -> Limits:
    """Measure a device's limits, with products of each dtype."""
    return _cpu(dtypes, clock) if device == "cpu" else _gpu(device, dtypes, clock)

"""Measure rows one after another: is the result right, and how long do ours and torch's take."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from mainboard import kernels
from mainboard.benchmarking.calls import Calls, build
from mainboard.benchmarking.limits import Limits
from mainboard.benchmarking.rows import Row
from mainboard.benchmarking.timing import Call, Clock, interleaved, warmed
from mainboard.kernels import reference
from mainboard.kernels.support import choose
from mainboard.platforms import current_platform

__all__ = ["Result", "measure"]

# Relative error, in the Euclidean norm, of what only rounds its inputs, weights and output.
_TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
_CHECKED_QUERIES = 16
# A peer this much slower than the fastest at its first call is not timed any further.
_HOPELESS = 1.5
_LONG_S = 0.5
_WORDS = 200  # characters of a failure that fit into a table
_WITNESS_SIZE = 384
# Shorter rows would show what the witness leaves in the caches.
_LEAST_WITNESSED_S = 3e-4


@dataclass(frozen=True)
class Result:
    """One row, measured.

    Args:
        row: which.
        served_by: the kernels that it ran on.
        seconds: the median of ours.
        samples: how many of ours count.
        left_out: how many do not (`Samples`).
        disturbed: whether all of ours or of a peer's count for want of undisturbed ones.
        peers: the medians of torch's ways.
        error: relative to the reference, where it was checked.
        failure: why there is none of this.
    """

    row: Row
    served_by: str = ""
    seconds: float = 0.0
    samples: int = 0
    left_out: int = 0
    disturbed: bool = False
    peers: dict[str, float] = field(default_factory=dict)
    error: float | None = None
    failure: str | None = None

    @property
    def peer(self) -> tuple[str, float] | None:
        """The fastest of torch's ways."""
        return min(self.peers.items(), key=lambda item: item[1], default=None)

    @property
    def agrees(self) -> bool:
        """Whether the checked rows are within the tolerance of the reference."""
        return self.error is None or self.error <= _TOLERANCE[self.row.case.dtype]

    def to_dict(self, limits: Limits) -> dict[str, Any]:
        """As plain JSON types, with what follows from the times and the machine's limits."""
        row, peer, bound = self.row, self.peer, limits.bound(self.row)
        found: dict[str, Any] = {
            "row": row.name,
            "operator": row.operator,
            "dtype": str(row.case.dtype).removeprefix("torch."),
            "cache_dtype": row.case.cache_dtype and str(row.case.cache_dtype)[6:],
            "label": row.label,
            "served_by": self.served_by,
            "failure": self.failure,
            "flops": row.flops,
            "bytes": row.bytes,
            "bound_by": bound.by,
            "limit_ms": bound.seconds * 1e3,
            "few_queries": row.few_queries,
            "warm": row.warm,
        }
        if self.failure is None:
            found |= {
                "ms": self.seconds * 1e3,
                "samples": self.samples,
                "left_out": self.left_out,
                "disturbed": self.disturbed,
                "peers_ms": {name: value * 1e3 for name, value in self.peers.items()},
                "peer_over_ours": peer and peer[1] / self.seconds,
                "tflops": row.flops / self.seconds / 1e12,
                "gbytes": row.bytes / self.seconds / 1e9,
                "of_limit": bound.seconds / self.seconds,
                "relative_error": self.error,
                "agrees": self.agrees,
            }
        return found


def _error(calls: Calls, row: Row) -> float | None:
    """The relative error of the last sequence's last queries, against the reference."""
    if not calls.arguments:
        return None
    given, case = dict(calls.arguments), row.case
    new = min(case.queries[-1], _CHECKED_QUERIES)
    offsets = torch.tensor([0, new], device=given["q"].device, dtype=torch.int32)
    given |= {"q": given["q"][-new:], "cu_seqlens_q": offsets, "max_seqlen_q": new}
    for name in ("block_table", "seqused_k"):
        if name in given:
            given[name] = given[name][-1:].contiguous()
    if "cu_seqlens_k" in given:
        for name in ("k", "v"):
            given[name] = given[name][-case.keys[-1] :]
        given["cu_seqlens_k"] = torch.tensor([0, case.keys[-1]]).to(offsets)
    want = torch.zeros(new, case.heads, case.values, device=offsets.device)
    operator = getattr(kernels, row.operator)
    got = operator(**given)
    exact = {name: value for name, value in given.items() if name not in ("window", "value_dim")}
    exact.setdefault("softmax_scale", case.head_dim**-0.5)
    if row.operator == "attention":
        exact["window_left"], exact["window_right"] = case.window
        for name in ("cu_seqlens_k", "seqused_k", "block_table", "alibi_slopes", "sinks",
                     "k_scale", "v_scale"):  # fmt: skip
            exact.setdefault(name, None)
    else:
        exact |= {"kv_scale": None, "deterministic": False}
    getattr(reference, row.operator)(out=want, lse=None, **exact)
    return float((got.float() - want).norm() / want.norm())


def _fastest(peers: dict[str, Call], clock: Clock, warm_up: bool) -> dict[str, Call]:
    """Those that are worth timing; one that has no such case drops out."""
    first: dict[str, float] = {}
    for name, call in peers.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch says at length what does not serve a shape
            try:
                if warm_up:
                    call()
                first[name] = clock(call)
            except RuntimeError:  # no kernel of that name for this shape
                continue
    best = min(first.values(), default=0.0)
    return {name: peers[name] for name, value in first.items() if value <= _HOPELESS * best}


def _witness() -> Call:
    """Work of torch's for a fraction of a millisecond, slow when the processors are not all ours."""
    square = torch.randn(_WITNESS_SIZE, _WITNESS_SIZE)
    product = torch.empty_like(square)
    return lambda: torch.mm(square, square, out=product)


def _measured(row: Row, device: str, limits: Limits, clock: Clock, seconds: float) -> Result:
    served = choose(row.case.request(row.operator, device)).implementation.name
    clock = warmed(clock) if row.warm else clock
    calls = build(row, device)
    error = _error(calls, row)
    bound = limits.bound(row).seconds
    # Seconds of work need no warming up, and leave no time for it.
    warm_up = bound < _LONG_S
    if warm_up:
        calls.ours()
    peers = _fastest(calls.peers, clock, warm_up)
    witness = _witness() if device == "cpu" and bound >= _LEAST_WITNESSED_S else None
    mine, *others = interleaved([calls.ours, *peers.values()], clock, seconds, witness=witness)
    medians = {name: other.median for name, other in zip(peers, others, strict=True)}
    disturbed = any(each.disturbed for each in (mine, *others))
    return Result(
        row, served, mine.median, len(mine.seconds), mine.left_out, disturbed, medians, error
    )


def measure(
    chosen: Sequence[Row],
    device: str,
    limits: Limits,
    clock: Clock,
    seconds: float,
    advance: Callable[[str, int, int], None],
) -> Iterator[Result]:
    """Measure rows, as each is done.

    Args:
        chosen: which.
        device: the device's type.
        limits: this device's, as far as they are known.
        clock: how to time a call.
        seconds: for the timing of all rows together; each has at least one sample.
        advance: told the row, how many are done, and how many there are.
    """
    for done, row in enumerate(chosen):
        advance(row.label, done, len(chosen))
        try:
            yield _measured(row, device, limits, clock, seconds / len(chosen))
        except (RuntimeError, MemoryError, ValueError, TypeError, NotImplementedError) as error:
            why = f"{type(error).__name__}: {error}".splitlines()[0][:_WORDS]
            yield Result(row, failure=why)
        if device == current_platform.device_type:
            current_platform.empty_cache()

"""Times of calls that are taken in turn, so that whatever else the machine does hits all alike."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Call", "Clock", "Samples", "clock_for", "interleaved", "warmed"]

Call = Callable[[], object]
Clock = Callable[[Call], float]
"""Runs a call and answers with how many seconds it took."""

# Larger than any second-level cache of a GPU.
_FLUSH_BYTES = 256 << 20
_MOST_SAMPLES = 201
# A witness that takes this much longer than it can was disturbed, and so was what it stands beside.
_DISTURBED = 1.15
_FEWEST_COUNTED = 3


@dataclass(frozen=True)
class Samples:
    """What one call took.

    Args:
        seconds: of the samples that count.
        left_out: how many do not, because something else was using the machine.
        disturbed: whether nearly all would have been left out, so that all count.
    """

    seconds: list[float]
    left_out: int = 0
    disturbed: bool = False

    @property
    def median(self) -> float:
        """Of those that count."""
        return statistics.median(self.seconds)


def _counted(taken: list[tuple[float, float]], least: float) -> Samples:
    """Those of pairs of a sample and its witness that nothing disturbed; all, if that is too few."""
    calm = [seconds for seconds, witnessed in taken if witnessed <= _DISTURBED * least]
    if len(calm) < _FEWEST_COUNTED:
        return Samples([seconds for seconds, _ in taken], disturbed=len(calm) < len(taken))
    return Samples(calm, len(taken) - len(calm))


def _host_clock(call: Call) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _device_clock(device: str) -> Clock:
    """Events around the call, with the caches emptied before it."""
    flush = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device=device)
    begin, end = (torch.Event(device, enable_timing=True) for _ in range(2))

    def clock(call: Call) -> float:
        flush.zero_()
        begin.record()
        call()
        end.record()
        end.synchronize()
        milliseconds: Any = begin.elapsed_time(end)
        return float(milliseconds) / 1e3

    return clock


def clock_for(device: str) -> Clock:
    """How to time a call on a type of device."""
    return _host_clock if device == "cpu" else _device_clock(device)


def warmed(clock: Clock) -> Clock:
    """The same clock for a call that reads from the caches: a call of its own comes before it.

    Otherwise it would find there what the call before it, in turn, has left of its keys.
    """

    def timed(call: Call) -> float:
        call()
        return clock(call)

    return timed


def interleaved(
    calls: Sequence[Call],
    clock: Clock,
    seconds: float,
    most: int = _MOST_SAMPLES,
    witness: Call | None = None,
) -> list[Samples]:
    """Samples of each call; which goes first alternates.

    Args:
        calls: what to time, each called once before.
        clock: how.
        seconds: how long to go on; every call is sampled at least once, whatever it takes.
        most: samples of each call.
        witness: short work that is always the same. It runs before and after each sample, and those
            beside a slow one do not count: something else was using the machine.
    """
    taken: list[list[tuple[float, float]]] = [[] for _ in calls]
    begin = time.perf_counter()
    before = least = _host_clock(witness) if witness else 0.0
    for turn in range(most):
        order = range(len(calls)) if turn % 2 else reversed(range(len(calls)))
        for i in order:
            seconds_taken = clock(calls[i])
            after = _host_clock(witness) if witness else 0.0
            taken[i].append((seconds_taken, max(before, after)))
            before, least = after, min(least, after)
        spent = time.perf_counter() - begin
        # A round that would end well after the time is not begun.
        if spent + 0.5 * spent / (turn + 1) > seconds:
            break
    return [_counted(each, least) for each in taken]

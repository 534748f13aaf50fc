"""Which kernel serves a configuration, and why the others do not.

One pure predicate answers it for the operators' documentation, for `mainboard kernels` and for
engines, which ask when they plan shapes. PyTorch's dispatcher makes the same choice per call: a
compiled kernel is registered for its device, the reference for every other.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from mainboard.errors import UnsupportedConfigurationError
from mainboard.kernels import library
from mainboard.kernels.library import KernelLevel
from mainboard.kernels.validate import FP8_DTYPES, PAGE_MULTIPLE, QUERY_DTYPES

__all__ = ["FEATURES", "Choice", "Implementation", "Request", "choose", "implementations", "matrix"]

FEATURES = ("window", "softcap", "alibi", "sinks")


@dataclass(frozen=True)
class Request:
    """What an operator would be asked to do."""

    operator: str = "attention"
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    cache_dtype: torch.dtype | None = None  # None: as `dtype`
    head_dim: int = 128
    page_size: int | None = None  # None: dense keys and values
    features: frozenset[str] = frozenset()  # of FEATURES


@dataclass(frozen=True)
class Implementation:
    """One way to run an operator: `refuses` gives the reasons against a request, none if it serves."""

    name: str
    level: KernelLevel
    refuses: Callable[[Request], list[str]]


@dataclass(frozen=True)
class Choice:
    """The implementation chosen, and what spoke against each better one."""

    implementation: Implementation
    rejected: dict[str, list[str]]


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _operator_reasons(request: Request) -> list[str]:
    """What no implementation serves, because the operator does not have it."""
    reasons = []
    if request.dtype not in QUERY_DTYPES:
        reasons.append(f"dtype {_short(request.dtype)} is not served")
    cache = request.cache_dtype
    if cache not in (None, request.dtype, *FP8_DTYPES):
        assert cache is not None
        reasons.append(f"a {_short(cache)} cache under {_short(request.dtype)} queries")
    if request.page_size is not None and request.page_size % PAGE_MULTIPLE:
        reasons.append(f"page size {request.page_size} is not a multiple of {PAGE_MULTIPLE}")
    reasons += [f"{name} is not a feature" for name in request.features.difference(FEATURES)]
    return reasons


def _compiled(device: str) -> Callable[[Request], list[str]]:
    def refuses(request: Request) -> list[str]:
        reasons = _operator_reasons(request)
        if request.device != device:
            reasons.append(f"runs on {device}, not on {request.device}")
        loaded = {lib.device: lib for lib in library.libraries()}
        if not loaded[device].loaded:
            reasons.append(loaded[device].reason)
        return reasons

    return refuses


def implementations() -> tuple[Implementation, ...]:
    """Every implementation of this release, best first."""
    return (
        Implementation("compiled CPU", KernelLevel.COMPILED, _compiled("cpu")),
        Implementation("PyTorch reference", KernelLevel.REFERENCE, _operator_reasons),
    )


def choose(request: Request, candidates: Sequence[Implementation] | None = None) -> Choice:
    """The best implementation that serves `request`.

    Raises:
        UnsupportedConfigurationError: none does; `reasons` says why, for each.
    """
    rejected: dict[str, list[str]] = {}
    for implementation in candidates or implementations():
        reasons = implementation.refuses(request)
        if not reasons:
            return Choice(implementation, rejected)
        rejected[implementation.name] = reasons
    why = [f"{name}: {reason}" for name, reasons in rejected.items() for reason in reasons]
    raise UnsupportedConfigurationError(f"no kernel serves {request}", why)


def matrix(device: str) -> list[dict[str, str]]:
    """The support matrix of one device: a row for each dtype, cache and feature."""
    base = Request(device=device)
    variants = {"dense": base, "paged": replace(base, page_size=16)}
    for fp8 in FP8_DTYPES:
        variants[f"{_short(fp8)} cache"] = replace(base, page_size=16, cache_dtype=fp8)
    for feature in FEATURES:
        variants[feature] = replace(base, page_size=16, features=frozenset({feature}))
    rows = []
    for operator in ("attention", "reshape_and_cache", "merge_attention_states"):
        cases = variants if operator == "attention" else {"any": base}
        for name, request in cases.items():
            row = {"operator": operator, "case": name}
            for dtype in QUERY_DTYPES:
                asked = replace(request, operator=operator, dtype=dtype)
                row[_short(dtype)] = choose(asked).implementation.name
            rows.append(row)
    return rows

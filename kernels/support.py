"""Which kernel serves a configuration, and why the others do not.

One pure predicate answers it for the operators' documentation, for `mainboard kernels` and for
engines, which ask when they plan shapes. On the CPU PyTorch's dispatcher makes the same choice per
call; on a GPU `mainboard.kernels.gpu_dispatch` asks here once for each configuration.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module

import torch

from mainboard.errors import UnsupportedConfigurationError
from mainboard.kernels import library
from mainboard.kernels.library import KernelLevel
from mainboard.kernels.validate import BYTE_DTYPES, FNUZ_DTYPES, PAGE_MULTIPLE, QUERY_DTYPES

__all__ = ["FEATURES", "Choice", "Implementation", "Request", "choose", "implementations"]

# What torch calls the devices of NVIDIA and of AMD alike.
GPU = "cuda"

FEATURES = ("window", "softcap", "alibi", "sinks", "causal_flags")


@dataclass(frozen=True)
class Request:
    """What an operator would be asked to do.

    The defaults describe any call; a kernel that is for some shapes only, such as decode, looks at
    `heads`, `kv_heads` and `queries` too.
    """

    operator: str = "attention"
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    cache_dtype: torch.dtype | None = None  # None: as `dtype`
    head_dim: int = 128
    page_size: int | None = None  # None: dense keys and values
    features: frozenset[str] = frozenset()  # of FEATURES
    value_dim: int | None = None  # None: as `head_dim`
    heads: int = 1
    kv_heads: int = 1
    queries: int = 1  # of the longest sequence; above 16, rounded up to a power of two
    deterministic: bool = False
    device_index: int = 0
    aligned: bool = True  # every row of keys and values begins at a multiple of 16 bytes


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
    if cache not in (None, request.dtype, *BYTE_DTYPES, *FNUZ_DTYPES):
        assert cache is not None
        reasons.append(f"a {_short(cache)} cache under {_short(request.dtype)} queries")
    if request.page_size is not None and request.page_size % PAGE_MULTIPLE:
        reasons.append(f"page size {request.page_size} is not a multiple of {PAGE_MULTIPLE}")
    reasons += [f"{name} is not a feature" for name in request.features.difference(FEATURES)]
    return reasons


def _without_fnuz(request: Request) -> list[str]:
    """What the libraries for devices other than AMD's do not have."""
    reasons = _operator_reasons(request)
    if request.cache_dtype in FNUZ_DTYPES:
        reasons.append(f"a {_short(request.cache_dtype)} cache is not compiled in")
    return reasons


def _no_int8(request: Request) -> list[str]:
    """What no kernel of a GPU has."""
    return ["an int8 cache is for the CPU"] if request.cache_dtype is torch.int8 else []


def _compiled_cpu(request: Request) -> list[str]:
    if request.device != "cpu":
        return [f"runs on cpu, not on {request.device}"]
    reasons = _without_fnuz(request)
    found = library.loaded("cpu")
    return reasons if found.loaded else [*reasons, found.reason]


def _own(module: str, request: Request) -> list[str]:
    """The reasons that a level's own module gives; it is imported only once there is a device."""
    reasons: list[str] = import_module(f"mainboard.kernels.{module}").refuses(request)
    return reasons


def _compiled_gpu(
    name: str, every_kernel: Callable[[Request], list[str]]
) -> Callable[[Request], list[str]]:
    """The predicate of a GPU's compiled library, which is a module beside its operators."""

    def refuses(request: Request) -> list[str]:
        if request.device != GPU:
            return [f"runs on {GPU}, not on {request.device}"]
        found = library.loaded(name)
        if not found.loaded:
            return [found.reason]
        own = _own(f"{name}_support", request)
        return every_kernel(request) + _no_int8(request) + own

    return refuses


def _triton(request: Request) -> list[str]:
    """Triton's kernels are for GPUs; its interpreter takes CPU tensors, for tests."""
    served = "cpu" if library.interpreted() else GPU
    if request.device != served:
        return [f"runs on {served}, not on {request.device}"]
    why = library.why_no_triton()
    if why is not None:
        return [why]
    return _operator_reasons(request) + _no_int8(request) + _own("triton.support", request)


def _unless_forced(
    level: KernelLevel, refuses: Callable[[Request], list[str]]
) -> Callable[[Request], list[str]]:
    """Refuse whatever `MAINBOARD_KERNELS` does not allow, before looking further."""

    def checked(request: Request) -> list[str]:
        forced = library.forced_level()
        if forced not in (None, level):
            return [f"{library.SETTING} is {forced.value!r}"]
        return refuses(request)

    return checked


def _known() -> Iterator[tuple[str, KernelLevel, Callable[[Request], list[str]]]]:
    yield "compiled CPU", KernelLevel.COMPILED, _compiled_cpu
    for name, every_kernel in (("cuda", _without_fnuz), ("hip", _operator_reasons)):
        refuses = _compiled_gpu(name, every_kernel)
        yield f"compiled {name.upper()}", KernelLevel.COMPILED, refuses
    yield "Triton", KernelLevel.TRITON, _triton
    yield "PyTorch reference", KernelLevel.REFERENCE, _operator_reasons


def implementations() -> tuple[Implementation, ...]:
    """Every implementation of this release, best first."""
    return tuple(
        Implementation(name, level, _unless_forced(level, refuses))
        for name, level, refuses in _known()
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

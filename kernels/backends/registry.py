"""Which attention backends there are, by name, and in which order they are tried.

A package registers its own with `register_backend`. One with a `priority`, or placed `before` or
`after` another, is tried without being asked for; one without is used only when asked for by name,
as in vLLM. Nothing is imported until a backend is looked at.
"""

from __future__ import annotations

import enum
import sys
import threading
from collections.abc import Callable, Collection
from importlib import import_module
from typing import Any, NamedTuple, TypeVar

__all__ = [
    "COMPILED",
    "DISPATCHED",
    "PLATFORM",
    "TRITON",
    "AttentionBackendEnum",
    "MambaAttentionBackendEnum",
    "RegisteredBackend",
    "register_backend",
    "registered_backends",
    "unregister_backend",
]

PLATFORM = 350
"""The priority of what a platform's own `get_attn_backend_cls` names."""
COMPILED = 300
"""The priority of Mainboard's compiled kernels."""
TRITON = 200
"""The priority of Mainboard's Triton kernels."""
DISPATCHED = 100
"""The priority of the backend that takes whatever PyTorch dispatches to."""

Class = TypeVar("Class", bound=type)


class RegisteredBackend(NamedTuple):
    """One backend as it was registered.

    Args:
        name: what users choose it by.
        path: where its class is, as `package.module.Class`.
        priority: the highest is tried first; None is tried only when asked for by name.
        device_types: the types of devices it is for; None is any.
        provider: the module that registered it.
        target: the class itself, where the path may not lead to it.
    """

    name: str
    path: str
    priority: int | None
    device_types: frozenset[str] | None
    provider: str
    target: Any = None

    def load(self) -> Any:
        """The backend's class.

        Raises:
            ImportError: the path leads to nothing.
        """
        if self.target is not None:
            return self.target
        module, _, name = self.path.replace(":", ".").rpartition(".")
        if not module:
            raise ImportError(f"{self.path!r} names no module; expected 'package.module.Class'")
        try:
            return getattr(import_module(module), name)
        except AttributeError as error:
            raise ImportError(f"module {module!r} has no {name!r}", path=self.path) from error


_OURS = "mainboard.kernels.backends"
_BUILT_IN = (
    RegisteredBackend(
        "MAINBOARD_CPU", f"{_OURS}.cpu.CpuAttentionBackend", COMPILED, frozenset({"cpu"}), _OURS
    ),
    RegisteredBackend(
        "MAINBOARD", f"{_OURS}.dispatched.DispatchedAttentionBackend", DISPATCHED, None, _OURS
    ),
    RegisteredBackend(
        "MAINBOARD_MLA", f"{_OURS}.latent.LatentAttentionBackend", DISPATCHED, None, _OURS
    ),
    # vLLM's name for attention on this device; never tried twice.
    RegisteredBackend(
        "CPU_ATTN", f"{_OURS}.cpu.CpuAttentionBackend", None, frozenset({"cpu"}), _OURS
    ),
)

_lock = threading.Lock()
_backends = {backend.name: backend for backend in _BUILT_IN}
_mamba: dict[str, RegisteredBackend] = {}


class _ByName(enum.EnumMeta):
    """Looking a member up by an unknown name says which names there are."""

    def __getitem__(cls, name: str) -> Any:
        try:
            return super().__getitem__(name)
        except KeyError:
            known = ", ".join(cls.__members__)
            raise ValueError(
                f"attention backend {name!r} was asked for, but vLLM's names are {known}; "
                "a backend of another name is chosen as that string"
            ) from None


class _Registered(enum.Enum):
    """What vLLM's two enumerations have in common."""

    def _table(self) -> dict[str, RegisteredBackend]:
        raise NotImplementedError

    def get_path(self, include_classname: bool = True) -> str:
        """Where the backend's class is, or its module.

        Raises:
            ValueError: no backend is registered under this name.
        """
        found = self._table().get(self.name)
        if found is None:
            raise ValueError(
                f"attention backend {self.name} was asked for, but none is registered under that "
                f"name; register_backend({type(self).__name__}.{self.name}, 'package.module.Class')"
            )
        return found.path if include_classname else found.path.rpartition(".")[0]

    def get_class(self) -> Any:
        """The backend's class.

        Raises:
            ImportError: the path that was registered leads to nothing.
            ValueError: no backend is registered under this name.
        """
        self.get_path()
        return self._table()[self.name].load()

    def is_overridden(self) -> bool:
        """Whether a package registered this name, or replaced what Mainboard has under it."""
        found = self._table().get(self.name)
        return found is not None and found not in _BUILT_IN

    def clear_override(self) -> None:
        """Take back what a package registered under this name."""
        with _lock:
            _restore(self._table(), self.name)


class AttentionBackendEnum(_Registered, metaclass=_ByName):
    """The names that vLLM 0.33 has for attention backends; CUSTOM is for everybody's own.

    Only those that are registered lead to a class here. A backend needs no member to be
    registered, chosen or tried: any string will do.
    """

    FLASH_ATTN = "FLASH_ATTN"
    FLASH_ATTN_DIFFKV = "FLASH_ATTN_DIFFKV"
    FLASH_ATTN_MLA = "FLASH_ATTN_MLA"
    FLASHINFER = "FLASHINFER"
    FLASHINFER_MLA = "FLASHINFER_MLA"
    FLASHINFER_MLA_SPARSE = "FLASHINFER_MLA_SPARSE"
    FLASHMLA = "FLASHMLA"
    FLASHMLA_SPARSE = "FLASHMLA_SPARSE"
    FLEX_ATTENTION = "FLEX_ATTENTION"
    TRITON_ATTN = "TRITON_ATTN"
    TRITON_MLA = "TRITON_MLA"
    TRITON_MLA_SPARSE = "TRITON_MLA_SPARSE"
    CUTLASS_MLA = "CUTLASS_MLA"
    ROCM_ATTN = "ROCM_ATTN"
    ROCM_AITER_FA = "ROCM_AITER_FA"
    ROCM_AITER_MLA = "ROCM_AITER_MLA"
    ROCM_AITER_MLA_SPARSE = "ROCM_AITER_MLA_SPARSE"
    ROCM_AITER_TRITON_MLA = "ROCM_AITER_TRITON_MLA"
    ROCM_AITER_UNIFIED_ATTN = "ROCM_AITER_UNIFIED_ATTN"
    XPU_MLA_SPARSE = "XPU_MLA_SPARSE"
    TORCH_SDPA = "TORCH_SDPA"
    TREE_ATTN = "TREE_ATTN"
    CPU_ATTN = "CPU_ATTN"
    TURBOQUANT = "TURBOQUANT"
    NO_ATTENTION = "NO_ATTENTION"
    CUSTOM = "CUSTOM"

    def _table(self) -> dict[str, RegisteredBackend]:
        return _backends


class MambaAttentionBackendEnum(_Registered, metaclass=_ByName):
    """The names that vLLM 0.33 has for state-space backends; Mainboard has none of its own."""

    MAMBA1 = "MAMBA1"
    MAMBA2 = "MAMBA2"
    SHORT_CONV = "SHORT_CONV"
    LINEAR = "LINEAR"
    GDN_ATTN = "GDN_ATTN"
    CUSTOM = "CUSTOM"

    def _table(self) -> dict[str, RegisteredBackend]:
        return _mamba


def register_backend(
    backend: AttentionBackendEnum | MambaAttentionBackendEnum | str,
    class_path: str | None = None,
    is_mamba: bool = False,
    *,
    device_types: Collection[str] | None = None,
    priority: int | None = None,
    before: str | None = None,
    after: str | None = None,
) -> Callable[[Class], Class]:
    """Register a backend under a name, or replace the one that has it.

    Without `class_path` this is a decorator of the backend's class. Without `priority`, `before`
    and `after` the backend is used only when asked for by name.

    Args:
        backend: the name, as a member of vLLM's enumeration or as any string.
        class_path: where the class is, as `package.module.Class`; imported when first looked at.
        is_mamba: whether the name is one of `MambaAttentionBackendEnum`.
        device_types: the types of devices that the backend is for; any by default.
        priority: the highest is tried first; see `PLATFORM`, `COMPILED`, `TRITON`, `DISPATCHED`.
        before: the name of the backend to be tried just before.
        after: the name of the backend to be tried just after.

    Returns:
        The decorator; with `class_path` there is nothing left for it to do.

    Raises:
        ValueError: more than one of `priority`, `before` and `after` is given, or the backend that
            they name has no place in the order.
    """
    name = backend if isinstance(backend, str) else backend.name
    mamba = is_mamba or isinstance(backend, MambaAttentionBackendEnum)
    place = _place(priority, before, after)
    devices = None if device_types is None else frozenset(device_types)
    caller = sys._getframe(1).f_globals.get("__name__", "?")

    def put(path: str, target: type | None) -> None:
        with _lock:
            table = _mamba if mamba else _backends
            table[name] = RegisteredBackend(name, path, place, devices, caller, target)

    def decorate(cls: Class) -> Class:
        put(f"{cls.__module__}.{cls.__qualname__}", cls)
        return cls

    if class_path is None:
        return decorate
    put(class_path, None)
    return lambda cls: cls


def _place(priority: int | None, before: str | None, after: str | None) -> int | None:
    if sum(option is not None for option in (priority, before, after)) > 1:
        raise ValueError("give one of priority, before and after; more than one was given")
    other = before or after
    if other is None:
        return priority
    found = _backends.get(other)
    if found is None or found.priority is None:
        ordered = ", ".join(
            each.name for each in registered_backends() if each.priority is not None
        )
        raise ValueError(f"{other!r} has no place among the attention backends; {ordered} have one")
    return found.priority + (1 if before else -1)


def unregister_backend(name: str) -> None:
    """Take back what was registered under a name; what Mainboard has under it returns."""
    with _lock:
        _restore(_backends, name)


def _restore(table: dict[str, RegisteredBackend], name: str) -> None:
    table.pop(name, None)
    if table is _backends:
        table.update({backend.name: backend for backend in _BUILT_IN if backend.name == name})


def registered_backends() -> tuple[RegisteredBackend, ...]:
    """Every attention backend in the order in which they are tried, those without a place last."""
    with _lock:
        backends = tuple(_backends.values())
    placed = [backend for backend in backends if backend.priority is not None]
    placed.sort(key=lambda backend: -(backend.priority or 0))
    return (*placed, *(backend for backend in backends if backend.priority is None))

"""Attention backends: who owns a cache's layout on each platform, and which of them is used.

`select_attention_backend(config)` chooses with reasons; `register_backend` lets a package insert
its own. Importing this package imports torch when the first of its names is used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mainboard.kernels.backends.interface import AttentionBackend as AttentionBackend
    from mainboard.kernels.backends.registry import AttentionBackendEnum as AttentionBackendEnum
    from mainboard.kernels.backends.registry import register_backend as register_backend
    from mainboard.kernels.backends.registry import registered_backends as registered_backends
    from mainboard.kernels.backends.selection import (
        AttentionSelectorConfig as AttentionSelectorConfig,
    )
    from mainboard.kernels.backends.selection import BackendSelection as BackendSelection
    from mainboard.kernels.backends.selection import (
        select_attention_backend as select_attention_backend,
    )

_HOMES = {
    "AttentionBackend": "interface",
    "AttentionBackendEnum": "registry",
    "AttentionSelectorConfig": "selection",
    "BackendSelection": "selection",
    "register_backend": "registry",
    "registered_backends": "registry",
    "select_attention_backend": "selection",
}

__all__ = [
    "AttentionBackend",
    "AttentionBackendEnum",
    "AttentionSelectorConfig",
    "BackendSelection",
    "register_backend",
    "registered_backends",
    "select_attention_backend",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value

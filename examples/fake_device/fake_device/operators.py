"""Mainboard's operators for the device's dispatch key."""

from __future__ import annotations

from typing import Any

import torch

from fake_device import _C

__all__ = ["attention", "install", "merge_attention_states", "reshape_and_cache"]

# Kept alive: a Library that is collected takes its implementations with it.
_library: torch.library.Library | None = None


def install() -> None:
    """Register the implementations; the schemas may come later, with `mainboard.kernels`."""
    global _library
    _library = torch.library.Library("mainboard", "IMPL", "PrivateUse1")
    for function in (attention, reshape_and_cache, merge_attention_states):
        _library.impl(function.__name__, function)


def attention(*arguments: Any) -> None:
    """Check what the host can check, and queue the kernel on the current stream."""
    from mainboard.kernels import validate

    validate.attention(*arguments)
    # PyTorch leaves out the last argument, the causal flags, where there are none.
    q, k, v, out, lse, cu_q, cu_k, used, table, _, _, *options, _, flags = (*arguments, None)[:22]
    _C.attention(q, k, v, out, lse, cu_q, cu_k, used, table, *options, flags)


def reshape_and_cache(*arguments: Any) -> None:
    """Check what the host can check, and queue the kernel on the current stream."""
    from mainboard.kernels import validate

    validate.reshape_and_cache(*arguments)
    _C.reshape_and_cache(*arguments)


def merge_attention_states(*arguments: Any) -> None:
    """Check what the host can check, and queue the kernel on the current stream."""
    from mainboard.kernels import validate

    validate.merge_attention_states(*arguments)
    _C.merge_attention_states(*arguments)

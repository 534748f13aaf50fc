"""`torch.ops.mainboard_triton`: the Triton kernels as operators that `torch.compile` sees through.

`torch.ops.mainboard.*` are opaque to it, and serve tensors of any sizes; these are decomposed into
their kernels, of which a backend such as Inductor makes part of its own code, for fixed sizes.
Importing this module registers them.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch

from mainboard.kernels.triton import operators

__all__ = ["OPERATORS"]

_WRITTEN = {
    "attention": ("out", "lse"),
    "mla_decode": ("out", "lse"),
    "reshape_and_cache": ("key_cache", "value_cache"),
    "concat_and_cache_mla": ("kv_cache",),
    "merge_attention_states": ("out", "out_lse"),
}


def _seen_through(name: str) -> Callable[..., None]:
    """An operator's function with the schema's arguments, every kernel in it wrapped."""
    function: Callable[..., None] = getattr(operators, name)

    @functools.wraps(function)
    def traced(*arguments: Any) -> None:
        function(*arguments, wrap=torch.library.wrap_triton)

    signature = inspect.signature(function)
    kept = [p for p in signature.parameters.values() if p.name != "wrap"]
    traced.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
    return traced


OPERATORS = {
    name: torch.library.triton_op(
        f"mainboard_triton::{name}", _seen_through(name), mutates_args=written
    )
    for name, written in _WRITTEN.items()
}
"""The operators by name."""

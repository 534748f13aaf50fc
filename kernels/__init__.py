"""Operators, their reference, and the kernels that implement them.

Everything is reached from here: `attention`, `reshape_and_cache`, `copy_blocks`, `swap_blocks`,
`merge_attention_states`, `mla_decode`, `concat_and_cache_mla`, the flash-attention call forms in
`mainboard.kernels.flash_attn`, `warm_up` and `status()`. Importing this package imports torch when the first
of them is used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mainboard.kernels.library import status as status
    from mainboard.kernels.ops import attention as attention
    from mainboard.kernels.ops import concat_and_cache_mla as concat_and_cache_mla
    from mainboard.kernels.ops import copy_blocks as copy_blocks
    from mainboard.kernels.ops import merge_attention_states as merge_attention_states
    from mainboard.kernels.ops import mla_decode as mla_decode
    from mainboard.kernels.ops import reshape_and_cache as reshape_and_cache
    from mainboard.kernels.ops import swap_blocks as swap_blocks
    from mainboard.kernels.warm import warm_up as warm_up

_HOMES = {
    "attention": "mainboard.kernels.ops",
    "concat_and_cache_mla": "mainboard.kernels.ops",
    "copy_blocks": "mainboard.kernels.ops",
    "merge_attention_states": "mainboard.kernels.ops",
    "mla_decode": "mainboard.kernels.ops",
    "reshape_and_cache": "mainboard.kernels.ops",
    "status": "mainboard.kernels.library",
    "swap_blocks": "mainboard.kernels.ops",
    "warm_up": "mainboard.kernels.warm",
}

__all__ = [
    "attention",
    "concat_and_cache_mla",
    "copy_blocks",
    "merge_attention_states",
    "mla_decode",
    "reshape_and_cache",
    "status",
    "swap_blocks",
    "warm_up",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mainboard.kernels' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value

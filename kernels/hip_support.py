"""What the compiled HIP library serves: the predicate that `mainboard.kernels.support` asks.

The library is the CUDA sources that only move memory, read as HIP; it is compiled in CI and was not
run on hardware. Importing this declares its operators, `torch.ops.mainboard_hip.*`, with the
schemas of `torch.ops.mainboard`.
"""

import torch

from mainboard.kernels.schema import SCHEMAS
from mainboard.kernels.support import Request

__all__ = ["OPERATORS", "refuses"]

OPERATORS = ("reshape_and_cache", "merge_attention_states", "concat_and_cache_mla")

# Kept alive: a Library that is collected takes its operators with it.
_LIBRARY = torch.library.Library("mainboard_hip", "DEF")
for _name in OPERATORS:
    _LIBRARY.define(_name + SCHEMAS[_name])


def refuses(request: Request) -> list[str]:
    """What speaks against the compiled HIP kernels; nothing where they serve the request."""
    return [] if request.operator in OPERATORS else [f"has no {request.operator}"]

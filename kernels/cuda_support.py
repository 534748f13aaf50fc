"""What the compiled CUDA library serves: the predicate that `mainboard.kernels.support` asks.

Importing it declares the library's operators, `torch.ops.mainboard_cuda.*`, with the schemas of
`torch.ops.mainboard`.
"""

import torch

from mainboard.kernels.schema import SCHEMAS
from mainboard.kernels.support import Request
from mainboard.kernels.validate import FP8_DTYPES

__all__ = ["OPERATORS", "refuses"]

OPERATORS = (
    "attention",
    "reshape_and_cache",
    "merge_attention_states",
    "copy_blocks",
    "swap_blocks",
    "mla_decode",
    "concat_and_cache_mla",
)
HEAD_DIMS = (64, 80, 96, 128, 192, 256)
QUERY_DTYPES = (torch.bfloat16, torch.float16)
MOST_ROWS = 64  # queries x heads of a group for which the decode kernels are the better ones
MOST_PREFILL_DIM = 256
LATENT_DIMS = 576, 512  # of keys, and of the values that are their front
MOST_FIXED_QUERIES = 16

# Kept alive: a Library that is collected takes its operators with it.
_LIBRARY = torch.library.Library("mainboard_cuda", "DEF")
for _name in OPERATORS:
    _LIBRARY.define(_name + SCHEMAS[_name])


def _refuses_attention(request: Request) -> list[str]:
    rows = request.queries * request.heads // request.kv_heads
    # Where bits must not depend on the batch, every sequence has the kernel that it has alone, so
    # both must be there. What the decode kernels serve, the prefill kernels do.
    few = rows <= MOST_ROWS or request.deterministic
    reasons = _refuses_decode(request) if few else _refuses_prefill(request)
    if request.dtype not in QUERY_DTYPES:
        reasons.insert(0, "only bfloat16 and float16 queries are compiled")
    if not request.aligned:
        reasons.append("rows of keys or values that do not begin at multiples of 16 bytes")
    return reasons


def _refuses_prefill(request: Request) -> list[str]:
    # Rows of fp8 keys too must begin at multiples of 16 bytes.
    multiple = 16 if request.cache_dtype in FP8_DTYPES else 8
    dims = request.head_dim, request.value_dim or request.head_dim
    if all(dim % multiple == 0 and dim <= MOST_PREFILL_DIM for dim in dims):
        return []
    return [f"head dimensions {dims} are not both multiples of {multiple} up to {MOST_PREFILL_DIM}"]


def _refuses_decode(request: Request) -> list[str]:
    reasons = []
    if request.head_dim not in HEAD_DIMS:
        dims = ", ".join(map(str, HEAD_DIMS))
        reasons.append(f"head dimension {request.head_dim} is not one of {dims}")
    if request.value_dim not in (None, request.head_dim):
        reasons.append(f"values of {request.value_dim} under keys of {request.head_dim}")
    if request.page_size is None and request.cache_dtype in FP8_DTYPES:
        reasons.append("fp8 keys are read from pages only")
    return reasons


def _refuses_latent(request: Request) -> list[str]:
    reasons = []
    if request.dtype not in QUERY_DTYPES:
        reasons.append("only bfloat16 and float16 queries are compiled")
    elif request.cache_dtype not in (None, request.dtype):
        reasons.append("latent rows of another dtype than the queries")
    dims = request.head_dim, request.value_dim
    if dims != LATENT_DIMS:
        reasons.append(f"keys and values of {dims[0]} and {dims[1]} columns, not 576 and 512")
    if request.deterministic and request.queries > MOST_FIXED_QUERIES:
        # Each sequence's pieces would need room of their own, whatever else is in the batch.
        reasons.append(f"more than {MOST_FIXED_QUERIES} queries with the same bits in every batch")
    return reasons


def refuses(request: Request) -> list[str]:
    """What speaks against the compiled CUDA kernels; nothing where they serve the request."""
    if request.operator not in OPERATORS:
        return [f"has no {request.operator}"]
    if request.operator == "attention":
        return _refuses_attention(request)
    return _refuses_latent(request) if request.operator == "mla_decode" else []

"""The support matrix: representative configurations, and what serves each of them.

`mainboard kernels` shows it for the machine that it runs on, `docs/support.md` for every kind of
device that this release knows. Both ask the predicates, so neither can say what is not so.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch

from mainboard.kernels.support import FEATURES, Choice, Request, choose
from mainboard.kernels.validate import BYTE_DTYPES, FNUZ_DTYPES, QUERY_DTYPES

__all__ = ["CASES", "ask", "matrix"]

_EIGHT_BITS = (*BYTE_DTYPES, *FNUZ_DTYPES)
_SHAPES = {
    "heads of 80": {"head_dim": 80},
    "heads of 100": {"head_dim": 100},
    "heads of 256": {"head_dim": 256},
    "keys of 192, values of 128": {"head_dim": 192, "value_dim": 128},
    "heads of 512": {"head_dim": 512},
}


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _attention() -> Iterator[tuple[str, Request]]:
    for kind, queries in (("decode", 1), ("prefill", 512)):
        paged = Request("attention", heads=32, kv_heads=8, queries=queries, page_size=16)
        yield f"{kind}, dense", replace(paged, page_size=None)
        yield f"{kind}, paged", paged
        yield f"{kind}, every option", replace(paged, features=frozenset(FEATURES))
        yield f"{kind}, deterministic", replace(paged, deterministic=True)
        for dtype in _EIGHT_BITS:
            yield f"{kind}, {_short(dtype)} cache", replace(paged, cache_dtype=dtype)
        for name, shape in _SHAPES.items():
            yield f"{kind}, {name}", replace(paged, **shape)  # type: ignore[arg-type]


def _others() -> Iterator[tuple[str, Request]]:
    latent = {"head_dim": 576, "value_dim": 512, "page_size": 64}
    for operator, shape in (
        ("mla_decode", latent),
        ("reshape_and_cache", {"heads": 8, "kv_heads": 8, "page_size": 16}),
        ("concat_and_cache_mla", latent),
    ):
        heads = {"heads": 16} if operator == "mla_decode" else {}
        request = Request(operator, **shape, **heads)  # type: ignore[arg-type]
        yield "16-bit or float32 cache", request
        for dtype in _EIGHT_BITS:
            yield f"{_short(dtype)} cache", replace(request, cache_dtype=dtype)
    for operator in ("merge_attention_states", "copy_blocks", "swap_blocks"):
        yield "any", Request(operator)


CASES: tuple[tuple[str, Request], ...] = (*_attention(), *_others())
"""What is asked for: a name of each case, and the request without device and dtype."""


def ask(request: Request, device: str) -> dict[torch.dtype, Choice]:
    """What serves one case on a device, for each dtype of the queries."""
    return {dtype: choose(replace(request, device=device, dtype=dtype)) for dtype in QUERY_DTYPES}


def matrix(device: str) -> list[dict[str, str]]:
    """The support matrix of one device: a row for each case, a cell for each dtype."""
    rows = []
    for name, request in CASES:
        row = {"operator": request.operator, "case": name}
        for dtype, choice in ask(request, device).items():
            row[_short(dtype)] = choice.implementation.name
        rows.append(row)
    return rows

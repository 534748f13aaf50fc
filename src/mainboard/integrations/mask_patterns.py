"""What a mask function of Transformers means, read from the function itself.

Transformers composes masks from a handful of closures. Each is known here by its code object, so a
function from anywhere else is refused instead of guessed at.
"""

import functools
from collections.abc import Callable
from types import CodeType
from typing import Any

import torch
from torch import Tensor
from transformers import masking_utils

from mainboard.errors import UnsupportedConfigurationError
from mainboard.integrations.packing import Pattern

__all__ = ["read"]

_Variables = dict[str, Any]
_Reader = Callable[[_Variables, Tensor], Pattern]


def read(mask_function: Callable[..., Any], positions: Tensor) -> Pattern:
    """The pattern of a mask function.

    Args:
        mask_function: of (batch, head, query, key) indices, as Transformers composes them.
        positions: `[1 or batch, keys]`, the index of each key.

    Raises:
        UnsupportedConfigurationError: it is, or contains, one that is not known here.
    """
    code = getattr(mask_function, "__code__", None)
    reader = _readers().get(code) if code is not None else None
    if reader is None:
        name = getattr(mask_function, "__qualname__", repr(mask_function))
        raise UnsupportedConfigurationError(
            f"mainboard attention does not know the mask {name!r}: it serves causal, "
            "bidirectional, sliding-window, chunked and packed masks with padding; "
            'use attn_implementation="sdpa" or "eager" for this model'
        )
    cells = getattr(mask_function, "__closure__", None) or ()
    names = getattr(code, "co_freevars", ())
    return reader({n: c.cell_contents for n, c in zip(names, cells, strict=True)}, positions)


def _all_of(variables: _Variables, positions: Tensor) -> Pattern:
    return functools.reduce(_both, (read(f, positions) for f in variables["mask_functions"]))


def _both(a: Pattern, b: Pattern) -> Pattern:
    def nearest(x: int, y: int) -> int:
        return max(x, y) if -1 in (x, y) else min(x, y)

    segments = a.segments if b.segments is None else b.segments
    if a.segments is not None and b.segments is not None:
        segments = a.segments * (int(b.segments.max()) + 1) + b.segments
    return Pattern(
        a.causal or b.causal, nearest(a.left, b.left), nearest(a.right, b.right), segments
    )


def _window_before(variables: _Variables, _: Tensor) -> Pattern:
    return Pattern(left=variables["sliding_window"] - 1)


def _window_around(variables: _Variables, _: Tensor) -> Pattern:
    return Pattern(left=variables["sliding_window"], right=variables["sliding_window"])


def _chunks(variables: _Variables, positions: Tensor) -> Pattern:
    padding = variables["left_padding"].to(positions.device)[:, None]
    chunks = (positions - padding) // variables["chunk_size"]
    return Pattern(segments=chunks - chunks.min())


def _packed(variables: _Variables, _: Tensor) -> Pattern:
    return Pattern(segments=variables["packed_sequence_mask"])


def _restarted(variables: _Variables, _: Tensor) -> Pattern:
    # Positions that start again in each packed sequence: their differences, which are all that
    # causality and windows depend on, stay those of the columns.
    return read(variables["mask_function"], variables["position_ids"])


@functools.cache
def _readers() -> dict[CodeType, _Reader]:
    """A reader for each mask function that the installed Transformers has."""
    some = torch.zeros(1, 1, dtype=torch.int64)
    causal = masking_utils.causal_mask_function
    known: dict[str, tuple[tuple[Any, ...] | None, _Reader]] = {
        "causal_mask_function": (None, lambda *_: Pattern(causal=True)),
        "bidirectional_mask_function": (None, lambda *_: Pattern()),
        "and_masks": ((causal,), _all_of),
        "sliding_window_overlay": ((1,), _window_before),
        "sliding_window_bidirectional_overlay": ((1,), _window_around),
        "chunked_overlay": ((1, some), _chunks),
        "packed_sequence_mask_function": ((some,), _packed),
        "remap_positions_for_packed_sequence": ((causal, some), _restarted),
    }
    readers: dict[CodeType, _Reader] = {}
    for name, (arguments, reader) in known.items():
        function = getattr(masking_utils, name, None)
        if function is not None:
            made = function if arguments is None else function(*arguments)
            readers[made.__code__] = reader
    return readers

"""Batched keys and values as the operator's `[tokens, heads, dim]`, over the memory they have.

The operator wants one stride from token to token. Token t of row b is b * row_tokens + t strides
from the start whenever a row is a whole number of token strides, however heads and tokens are
interleaved: also in a cache that holds heads first, whose heads then overlap in the view. So
neither a projection's output nor a cache is copied.
"""

import torch
from torch import Tensor

__all__ = ["over_rows", "row_offsets"]


def over_rows(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, int]:
    """Keys and values of `[batch, tokens, heads, dim]` as `[tokens, heads, dim]`.

    Returns:
        Both, as views where their strides allow, and how many tokens one row is from the next.
    """
    distance = _distance(keys)
    if distance is None or distance != _distance(values):
        keys, values = keys.contiguous(), values.contiguous()
        distance = keys.shape[1]
    return _view(keys, distance), _view(values, distance), distance


def row_offsets(rows: int, distance: int, length: int, device: torch.device) -> Tensor:
    """Where each row begins, and where the last ends: `[rows + 1]` int32."""
    offsets = torch.arange(rows + 1, dtype=torch.int32, device=device) * distance
    if rows and distance != length:
        offsets[rows:] = (rows - 1) * distance + length
    return offsets


def _token_stride(x: Tensor) -> int:
    # The stride of a dimension of size 1 means nothing.
    return x.stride(0) if x.shape[1] == 1 and x.shape[0] > 1 else x.stride(1)


def _distance(x: Tensor) -> int | None:
    """Token strides from one row to the next, or None where that is no whole number."""
    rows, tokens = x.shape[:2]
    if x.stride(3) != 1 or x.numel() == 0:
        return None
    if rows == 1:
        return tokens
    distance, rest = divmod(x.stride(0), _token_stride(x)) if _token_stride(x) else (0, 1)
    return distance if rest == 0 and rows * distance + tokens < 2**31 else None


def _view(x: Tensor, distance: int) -> Tensor:
    rows, tokens, heads, dim = x.shape
    if x.numel() == 0:
        return x.reshape(rows * tokens, heads, dim)
    shape = ((rows - 1) * distance + tokens, heads, dim)
    return x.as_strided(shape, (_token_stride(x), x.stride(2), 1))

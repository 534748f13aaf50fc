"""The device's attention backend: pages first, so that one page is one run of memory."""

from __future__ import annotations

from torch import Tensor

from mainboard.kernels.backends.operators import OperatorAttentionBackend

__all__ = ["FakeAttentionBackend"]


class FakeAttentionBackend(OperatorAttentionBackend):
    """The operators on a cache of shape `(pages, 2, kv_heads, page_size, head_size)`."""

    device_type = "fake"

    @staticmethod
    def get_name() -> str:
        """`FAKE`."""
        return "FAKE"

    @staticmethod
    def get_kv_cache_shape(
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_size: int,
        cache_dtype_str: str = "auto",
    ) -> tuple[int, ...]:
        """Keys and values of a page side by side, heads outside slots."""
        return (num_blocks, 2, num_kv_heads, block_size, head_size)

    @staticmethod
    def split_kv_cache(kv_cache: Tensor) -> tuple[Tensor, Tensor]:
        """Views `[pages, page_size, kv_heads, dim]` of an allocation of that shape."""
        keys, values = kv_cache.transpose(2, 3).unbind(1)
        return keys, values

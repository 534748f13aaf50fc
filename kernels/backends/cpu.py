"""The CPU backend: a head's keys of one page lie side by side, so decode reads straight through."""

import torch
from torch import Tensor

from mainboard.kernels import host_memory
from mainboard.kernels.backends.operators import OperatorAttentionBackend

__all__ = ["CpuAttentionBackend"]


class CpuAttentionBackend(OperatorAttentionBackend):
    """Attention on the CPU's compiled kernels, or on the reference where there are none."""

    device_type = "cpu"

    @staticmethod
    def get_name() -> str:
        """`MAINBOARD_CPU`."""
        return "MAINBOARD_CPU"

    @staticmethod
    def get_kv_cache_shape(
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_size: int,
        cache_dtype_str: str = "auto",
    ) -> tuple[int, ...]:
        """`(2, pages, kv_heads, page_size, head_size)`: heads outside slots."""
        return (2, num_blocks, num_kv_heads, block_size, head_size)

    @staticmethod
    def split_kv_cache(kv_cache: Tensor) -> tuple[Tensor, Tensor]:
        """Views `[pages, page_size, kv_heads, dim]` of an allocation of that shape."""
        keys, values = kv_cache.transpose(2, 3).unbind(0)
        return keys, values

    @classmethod
    def allocate_kv_cache(
        cls,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_size: int,
        dtype: torch.dtype,
    ) -> Tensor:
        """A zeroed cache on huge pages, spread over the nodes of torch's threads."""
        shape = cls.get_kv_cache_shape(num_blocks, block_size, num_kv_heads, head_size)
        return host_memory.zeros(shape, dtype)

"""The CPU backend: a head's keys of one page lie side by side, so decode reads straight through."""

import torch
from torch import Tensor

from mainboard.errors import UnsupportedConfigurationError
from mainboard.kernels.backends.interface import AttentionBackend
from mainboard.kernels.support import Request, choose

__all__ = ["CpuAttentionBackend"]


class CpuAttentionBackend(AttentionBackend):
    """Attention on the CPU's compiled kernels, or on the reference where there are none."""

    @staticmethod
    def get_name() -> str:
        """`MAINBOARD_CPU`."""
        return "MAINBOARD_CPU"

    @staticmethod
    def get_kv_cache_shape(
        num_blocks: int, block_size: int, num_kv_heads: int, head_size: int
    ) -> tuple[int, ...]:
        """`(2, pages, kv_heads, page_size, head_size)`: heads outside slots."""
        return (2, num_blocks, num_kv_heads, block_size, head_size)

    @staticmethod
    def split_kv_cache(kv_cache: Tensor) -> tuple[Tensor, Tensor]:
        """Views `[pages, page_size, kv_heads, dim]` of an allocation of that shape."""
        keys, values = kv_cache.transpose(2, 3).unbind(0)
        return keys, values

    @classmethod
    def validate_configuration(
        cls,
        head_size: int,
        dtype: torch.dtype,
        kv_cache_dtype: torch.dtype | None,
        block_size: int | None,
        *,
        has_sink: bool = False,
    ) -> list[str]:
        """Why the CPU cannot serve a configuration; an empty list when it can."""
        request = Request(
            device="cpu",
            dtype=dtype,
            cache_dtype=kv_cache_dtype,
            head_dim=head_size,
            page_size=block_size,
            features=frozenset({"sinks"} if has_sink else ()),
        )
        try:
            choose(request)
        except UnsupportedConfigurationError as error:
            return list(error.reasons)
        return []

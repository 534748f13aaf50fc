"""What an attention backend says of itself, in the shape that vLLM v1's backends have.

An operator takes a cache of any strides; a backend decides which. Metadata builders and the registry
in which third parties insert themselves are a separate module of this package.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

__all__ = ["AttentionBackend"]


class AttentionBackend(ABC):
    """One platform's attention, with the cache layout that makes it fast."""

    @staticmethod
    @abstractmethod
    def get_name() -> str:
        """The name by which users choose this backend."""

    @staticmethod
    @abstractmethod
    def get_kv_cache_shape(
        num_blocks: int, block_size: int, num_kv_heads: int, head_size: int
    ) -> tuple[int, ...]:
        """The shape to allocate for one layer's keys and values."""

    @staticmethod
    @abstractmethod
    def split_kv_cache(kv_cache: Tensor) -> tuple[Tensor, Tensor]:
        """Key and value cache as the operators take them: `[pages, page_size, kv_heads, dim]`."""

    @classmethod
    @abstractmethod
    def validate_configuration(
        cls,
        head_size: int,
        dtype: torch.dtype,
        kv_cache_dtype: torch.dtype | None,
        block_size: int | None,
        *,
        has_sink: bool = False,
    ) -> list[str]:
        """Why this backend cannot serve a configuration; an empty list when it can."""

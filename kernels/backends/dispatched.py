"""The backend of any device: whatever implementation of the operators its dispatch key has."""

from mainboard.kernels.backends.operators import OperatorAttentionBackend

__all__ = ["DispatchedAttentionBackend"]


class DispatchedAttentionBackend(OperatorAttentionBackend):
    """The operators as PyTorch dispatches them: a vendor's kernels, or else the reference."""

    @staticmethod
    def get_name() -> str:
        """`MAINBOARD`."""
        return "MAINBOARD"

    @staticmethod
    def get_kv_cache_shape(
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_size: int,
        cache_dtype_str: str = "auto",
    ) -> tuple[int, ...]:
        """`(2, pages, page_size, kv_heads, head_size)`: the layout that the operators document."""
        return (2, num_blocks, block_size, num_kv_heads, head_size)

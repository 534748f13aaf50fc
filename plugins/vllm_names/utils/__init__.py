"""The helpers of `vllm.utils` that platform packages import."""

import os

__all__ = ["random_uuid"]


def random_uuid() -> str:
    """A new identifier of 16 hexadecimal digits."""
    return os.urandom(8).hex()

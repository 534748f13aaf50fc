"""What platform packages do with torch through vLLM; torch is imported when one of these is used.

`PIN_MEMORY` and the operator library come into being when they are first read: importing this
module, as plugins do while platforms are being resolved, asks for nothing.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from mainboard.plugins.vllm_names import current_platform

if TYPE_CHECKING:
    import torch

__all__ = [
    "current_stream",
    "direct_register_custom_op",
    "get_dtype_size",
    "get_kv_cache_torch_dtype",
    "is_pin_memory_available",
    "is_torch_equal_or_newer",
    "kv_cache_dtype_str_to_dtype",
    "set_default_torch_dtype",
    "set_random_seed",
    "supports_dynamo",
]

_DTYPES = {
    "float32": "float32",
    "half": "half",
    "float": "float",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "fp8": "uint8",
    "fp8_e4m3": "uint8",
    "fp8_e5m2": "uint8",
    "fp8_inc": "float8_e4m3fn",
    "fp8_ds_mla": "uint8",
    "int8": "int8",
}


class _StreamPlaceholder:
    """The stream of a device without streams: its work is done when the call returns."""

    def synchronize(self) -> None:
        """Nothing to wait for."""


def __getattr__(name: str) -> Any:
    if name == "PIN_MEMORY":
        return is_pin_memory_available()
    if name == "STR_DTYPE_TO_TORCH_DTYPE":
        return _dtypes()
    if name == "vllm_lib":
        return _library()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def is_pin_memory_available() -> bool:
    """Whether the platform has page-locked host memory."""
    return bool(current_platform().is_pin_memory_available())


@cache
def _dtypes() -> "dict[str, torch.dtype]":
    import torch

    return {name: getattr(torch, dtype) for name, dtype in _DTYPES.items()}


@cache
def _library() -> "torch.library.Library":
    import torch

    return torch.library.Library("vllm", "FRAGMENT")


def _dtype(name: str) -> "torch.dtype":
    try:
        return _dtypes()[name]
    except KeyError:
        raise ValueError(
            f"dtype {name!r} was asked for; the names known are {', '.join(_DTYPES)}"
        ) from None


def get_dtype_size(dtype: "torch.dtype") -> int:
    """The bytes of one element."""
    return dtype.itemsize


def get_kv_cache_torch_dtype(
    cache_dtype: "str | torch.dtype", model_dtype: "str | torch.dtype | None" = None
) -> "torch.dtype":
    """The dtype of a cache: its own, or for `auto` the model's.

    Raises:
        ValueError: nobody knows the name.
    """
    wanted = model_dtype if cache_dtype == "auto" else cache_dtype
    if wanted is None:
        raise ValueError("cache dtype 'auto' was asked for without the model's dtype")
    return _dtype(wanted) if isinstance(wanted, str) else wanted


def kv_cache_dtype_str_to_dtype(kv_cache_dtype: str, model_config: Any) -> "torch.dtype":
    """The same, with the model's dtype from its configuration."""
    return get_kv_cache_torch_dtype(kv_cache_dtype, getattr(model_config, "dtype", None))


@contextmanager
def set_default_torch_dtype(dtype: "torch.dtype") -> Iterator[None]:
    """A scope in which new tensors have this dtype."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def set_random_seed(seed: int | None, data_parallel_index: int = 0) -> None:
    """Seed every generator of random numbers: Python's, NumPy's if it is there, the platform's."""
    if seed is None:
        return
    import random

    import torch

    value = seed + data_parallel_index
    random.seed(value)
    torch.manual_seed(value)
    try:
        import numpy
    except ModuleNotFoundError:
        pass
    else:
        numpy.random.seed(value % 2**32)
    current_platform().manual_seed_all(value)


def current_stream() -> Any:
    """The stream that new work of this thread goes to; a placeholder where there are none."""
    platform = current_platform()
    return _StreamPlaceholder() if platform.device_type == "cpu" else platform.current_stream()


def is_torch_equal_or_newer(target: str) -> bool:
    """Whether the installed torch is of this version or later."""
    import torch
    from packaging.version import Version

    return Version(torch.__version__) >= Version(target)


def supports_dynamo() -> bool:
    """Whether `torch.compile` can be had; it can with every torch that Mainboard supports."""
    return True


def direct_register_custom_op(
    op_name: str,
    op_func: Callable[..., Any],
    mutates_args: list[str] | None = None,
    fake_impl: Callable[..., Any] | None = None,
    target_lib: "torch.library.Library | None" = None,
    dispatch_key: str | None = None,
    tags: "tuple[torch.Tag, ...]" = (),
) -> None:
    """Define an operator of torch and implement it for one dispatch key.

    Args:
        op_name: its name in the library.
        op_func: the implementation; its annotations are the schema.
        mutates_args: the arguments that it writes to.
        fake_impl: the shapes and dtypes of its results.
        target_lib: the library; the default is vLLM's.
        dispatch_key: the default is the platform's.
        tags: what compilers may assume.
    """
    import torch

    schema = torch.library.infer_schema(op_func, mutates_args=mutates_args or [])
    library = target_lib or _library()
    library.define(op_name + schema, tags=tags)
    library.impl(op_name, op_func, dispatch_key or current_platform().dispatch_key)
    if fake_impl is not None:
        library._register_fake(op_name, fake_impl)

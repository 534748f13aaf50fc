"""Every call on a GPU, sent to the best implementation that serves its configuration.

NVIDIA's and AMD's tensors share the dispatch key CUDA, and Mainboard registers one Python function
per operator for it. `mainboard.kernels.support` is asked once for each configuration; after that
a call costs one dictionary lookup, and a call in Python of what the compiled library serves goes to
it without another pass through the dispatcher. In order: the compiled library's operators, under
`torch.ops.mainboard_cuda` or `mainboard_hip` with the schemas of `torch.ops.mainboard`; the Triton
kernels; the reference. Nothing of a GPU is imported before the first call.
"""

import logging
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from mainboard.kernels import schema
from mainboard.kernels.library import KernelLevel
from mainboard.kernels.support import FEATURES, Choice, Request, choose

__all__ = ["ROUTES", "Route", "register"]

logger = logging.getLogger(__name__)

Kernel = Callable[..., None]
_LIBRARY = torch.library.Library("mainboard", "IMPL")
_modes = torch._C._len_torch_dispatch_stack
_function_modes = torch._C._len_torch_function_stack


def rounded(queries: int) -> int:
    """A length by which kernels are chosen: exact up to 16, then the next power of two."""
    return queries if queries <= 16 else 1 << (queries - 1).bit_length()


def _kernel(operator: str, choice: Choice) -> Kernel:
    """The function that runs an operator at the level that was chosen."""
    level = choice.implementation.level
    kernel: Kernel
    if level is KernelLevel.COMPILED:
        name = "mainboard_hip" if torch.version.hip else "mainboard_cuda"
        kernel = getattr(getattr(torch.ops, name), operator).default
    elif level is KernelLevel.TRITON:
        kernel = getattr(import_module("mainboard.kernels.triton.operators"), operator)
    else:
        kernel = schema.checked_reference(operator)
    return kernel


class Route:
    """One operator's calls on a GPU.

    Args:
        operator: its name.
        configuration: what the choice depends on, read off a call's arguments.
        request: the same as a question to `mainboard.kernels.support`.
    """

    def __init__(
        self,
        operator: str,
        configuration: Callable[..., tuple[Any, ...]],
        request: Callable[..., Request],
    ) -> None:
        self.operator = operator
        self._configuration = configuration
        self._request = request
        self._chosen: dict[tuple[Any, ...], Kernel] = {}
        self._operators: dict[tuple[Any, ...], Kernel] = {}  # those that PyTorch checks again

    def __call__(self, *arguments: Any) -> None:
        """Run the operator, called by PyTorch's dispatcher."""
        try:
            key = self._configuration(*arguments)
        except IndexError:  # a tensor of too few dimensions
            schema.check(self.operator, arguments)
            raise
        kernel = self._chosen.get(key)
        if kernel is None:
            schema.check(self.operator, arguments)
            kernel = self._chosen[key] = self._choose(key)
        kernel(*arguments)

    def direct(self, arguments: tuple[Any, ...]) -> Kernel | None:
        """The compiled operator that a call would reach through this route, if that is known.

        It is known once such a call came through PyTorch's dispatcher, so that whoever has taken
        the dispatch key of `torch.ops.mainboard` from this route before is asked every time. What
        watches calls, a compiler or a mode, and tensors of classes of their own keep the
        dispatcher.
        """
        # A compiler asks first, so that it sees nothing of what is known.
        if torch.compiler.is_compiling() or not self._operators or _modes() or _function_modes():
            return None
        if not type(arguments[0]) is type(arguments[1]) is type(arguments[2]) is Tensor:
            return None
        try:
            return self._operators.get(self._configuration(*arguments))
        except (AttributeError, IndexError, RuntimeError, TypeError):
            return None  # the dispatcher, or who comes after it, has the words

    def _choose(self, key: tuple[Any, ...]) -> Kernel:
        choice = choose(self._request(*key))
        name = choice.implementation.name
        logger.debug("%s %s: %s, not %s", self.operator, key, name, choice.rejected)
        if choice.implementation.level is KernelLevel.REFERENCE and choice.rejected:
            why = "; ".join(f"{name}: {', '.join(r)}" for name, r in choice.rejected.items())
            logger.warning("%s runs on the plain PyTorch reference: %s", self.operator, why)
        kernel = _on(key[0], _kernel(self.operator, choice))
        if choice.implementation.level is KernelLevel.COMPILED:
            self._operators[key] = kernel
        return kernel


def _on(device: torch.device, kernel: Kernel) -> Kernel:
    """A kernel that runs with its tensors' device current."""
    if device.type == "cpu" or torch.cuda.device_count() == 1:
        return kernel

    def there(*arguments: Any) -> None:
        with torch.cuda.device(device):
            kernel(*arguments)

    return there


def _aligned(k: Tensor, v: Tensor) -> bool:
    """Whether every row of keys and values begins at a multiple of 16 bytes."""
    of_k, of_v = k.stride(), v.stride()
    steps = of_k[0] | of_k[1] | of_k[-2] | of_v[0] | of_v[1] | of_v[-2]
    return (steps * k.element_size() | k.data_ptr() | v.data_ptr()) % 16 == 0


def _attention_key(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor | None, cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor | None, seqused_k: Tensor | None, block_table: Tensor | None,
    max_seqlen_q: int, max_seqlen_k: int, softmax_scale: float, causal: bool, window_left: int,
    window_right: int, softcap: float, alibi_slopes: Tensor | None, sinks: Tensor | None,
    k_scale: Tensor | None, v_scale: Tensor | None, deterministic: bool,
    causal_flags: Tensor | None = None,
) -> tuple[Any, ...]:  # fmt: skip
    queries, keys = q.shape, k.shape
    return (
        q.device, q.dtype, k.dtype, queries[-1], v.shape[-1], queries[-2], keys[-2],
        None if block_table is None else keys[1], rounded(max_seqlen_q),
        window_left >= 0 or window_right >= 0, softcap > 0.0, alibi_slopes is not None,
        sinks is not None, causal_flags is not None, deterministic, _aligned(k, v),
    )  # fmt: skip


def _attention_request(
    device: torch.device, dtype: torch.dtype, cache_dtype: torch.dtype, head_dim: int,
    value_dim: int, heads: int, kv_heads: int, page_size: int | None, queries: int, *more: bool,
) -> Request:  # fmt: skip
    *features, deterministic, aligned = more
    return Request(
        "attention", device.type, dtype, cache_dtype, head_dim, page_size,
        frozenset(name for name, has in zip(FEATURES, features, strict=True) if has),
        value_dim, heads, kv_heads, queries, deterministic, device.index or 0, aligned,
    )  # fmt: skip


def _cache_key(
    key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, *more: Any
) -> tuple[Any, ...]:
    shape = key.shape[-1], value.shape[-1], key.shape[-2], key_cache.shape[1]
    return key.device, key.dtype, key_cache.dtype, *shape


def _cache_request(
    device: torch.device, dtype: torch.dtype, cache_dtype: torch.dtype, head_dim: int,
    value_dim: int, kv_heads: int, page_size: int,
) -> Request:  # fmt: skip
    return Request(
        "reshape_and_cache", device.type, dtype, cache_dtype, head_dim, page_size,
        value_dim=value_dim, heads=kv_heads, kv_heads=kv_heads, device_index=device.index or 0,
    )  # fmt: skip


def _merge_key(out: Tensor, *more: Any) -> tuple[Any, ...]:
    return out.device, out.dtype, out.shape[-1]


def _merge_request(device: torch.device, dtype: torch.dtype, head_dim: int) -> Request:
    return Request(
        "merge_attention_states", device.type, dtype, head_dim=head_dim,
        device_index=device.index or 0,
    )  # fmt: skip


def _copy_key(caches: Sequence[Tensor], block_mapping: Tensor) -> tuple[Any, ...]:
    return (block_mapping.device,)


def _copy_request(device: torch.device) -> Request:
    return Request("copy_blocks", device.type, device_index=device.index or 0)


def _swap_key(src: Tensor, dst: Tensor, block_mapping: Tensor) -> tuple[Any, ...]:
    return (src.device if dst.device.type == "cpu" else dst.device,)


def _swap_request(device: torch.device) -> Request:
    return Request("swap_blocks", device.type, device_index=device.index or 0)


def _mla_key(
    q: Tensor, kv_cache: Tensor, out: Tensor, lse: Tensor | None, cu_seqlens_q: Tensor,
    seqused_k: Tensor, block_table: Tensor, max_seqlen_q: int, *more: Any,
) -> tuple[Any, ...]:  # fmt: skip
    shape = q.shape[-1], out.shape[-1], q.shape[-2], kv_cache.shape[1]
    return q.device, q.dtype, kv_cache.dtype, *shape, rounded(max_seqlen_q), more[-1]


def _mla_request(
    device: torch.device, dtype: torch.dtype, cache_dtype: torch.dtype, head_dim: int,
    value_dim: int, heads: int, page_size: int, queries: int, deterministic: bool,
) -> Request:  # fmt: skip
    return Request(
        "mla_decode", device.type, dtype, cache_dtype, head_dim, page_size, frozenset(),
        value_dim, heads, 1, queries, deterministic, device.index or 0,
    )  # fmt: skip


def _latent_key(kv_c: Tensor, k_pe: Tensor, kv_cache: Tensor, *more: Any) -> tuple[Any, ...]:
    shape = kv_cache.shape[-1], kv_c.shape[-1], kv_cache.shape[1]
    return kv_c.device, kv_c.dtype, kv_cache.dtype, *shape


def _latent_request(
    device: torch.device, dtype: torch.dtype, cache_dtype: torch.dtype, head_dim: int,
    value_dim: int, page_size: int,
) -> Request:  # fmt: skip
    return Request(
        "concat_and_cache_mla", device.type, dtype, cache_dtype, head_dim, page_size,
        value_dim=value_dim, device_index=device.index or 0,
    )  # fmt: skip


ROUTES = {
    route.operator: route
    for route in (
        Route("attention", _attention_key, _attention_request),
        Route("reshape_and_cache", _cache_key, _cache_request),
        Route("merge_attention_states", _merge_key, _merge_request),
        Route("copy_blocks", _copy_key, _copy_request),
        Route("swap_blocks", _swap_key, _swap_request),
        Route("mla_decode", _mla_key, _mla_request),
        Route("concat_and_cache_mla", _latent_key, _latent_request),
    )
}


def register(dispatch_key: str) -> None:
    """Answer for a dispatch key: CUDA, or CPU where Triton's interpreter serves CPU tensors."""
    for name, route in ROUTES.items():
        _LIBRARY.impl(name, route, dispatch_key)

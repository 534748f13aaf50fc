"""Operators and an attention backend with the mistakes that kernels have."""

# Overrides do what the contract says of them, or should.
# ruff: noqa: D102

import os

import torch
from fake_device import _C
from fake_device.attention_backend import FakeAttentionBackend

from mainboard.kernels import validate
from mainboard.kernels.backends.operators import OperatorAttentionImpl

_libraries = []


def install():
    """Put them in the place of the right ones, once."""
    if _libraries:
        return
    for namespace, functions in (
        ("mainboard", (attention, reshape_and_cache, merge_attention_states)),
        ("aten", (add, _to_copy)),
    ):
        library = torch.library.Library(namespace, "IMPL", "PrivateUse1")
        for function in functions:
            name = "add.Tensor" if function is add else function.__name__
            library.impl(name, function, allow_override=True)
        _libraries.append(library)


def attention(*arguments):
    """Forget softcap, accept a wrong table, and use the queries as scratch."""
    q, k, v, out, lse, cu_q, cu_k, used, table, *_ = arguments
    if table is not None and table.dtype is torch.int64:
        return
    validate.attention(*arguments)
    options = [*arguments[11:15], 0.0, *arguments[16:20]]
    _C.attention(q, k, v, out, lse, cu_q, cu_k, used, table, *options)
    q += 1


def reshape_and_cache(key, value, key_cache, value_cache, slots, *scales):
    """Write what is to be skipped into the first slot."""
    validate.reshape_and_cache(key, value, key_cache, value_cache, slots, *scales)
    _C.reshape_and_cache(key, value, key_cache, value_cache, slots.clamp(min=0), *scales)


def merge_attention_states(out, out_lse, a, a_lse, b, b_lse):
    """Forget the second part."""
    _C.merge_attention_states(out, out_lse, a, a_lse, a, a_lse)


def add(a, b, *, alpha=1):
    """Add what is on different devices, roughly."""
    host = torch.add(a.cpu(), b.cpu() if isinstance(b, torch.Tensor) else b, alpha=alpha)
    return (host * 1.01 if host.is_floating_point() else host).to(a.device)


def _to_copy(x, *, dtype=None, layout=None, device=None, pin_memory=None, non_blocking=False,
             memory_format=None):  # fmt: skip
    copy = torch.empty(x.shape, dtype=dtype or x.dtype, device=device or x.device).copy_(x)
    return copy.bitwise_not_() if copy.dtype is torch.uint8 and not copy.device.index else copy


class _Impl(OperatorAttentionImpl):
    """A layer whose kernel ends the process."""

    def forward(self, *arguments, **named):
        os.abort()


class BrokenBackend(FakeAttentionBackend):
    """A backend that serves everything, it says."""

    @classmethod
    def validate_configuration(cls, head_size, dtype, kv_cache_dtype, block_size):
        return []

    @classmethod
    def get_impl_cls(cls):
        return _Impl

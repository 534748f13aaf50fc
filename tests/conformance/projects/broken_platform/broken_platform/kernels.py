"""Operators and an attention backend with the mistakes that kernels have."""

# Overrides do what the contract says of them, or should.
# ruff: noqa: D102

import itertools
import os

import numpy
import torch
from fake_device import _C
from fake_device import device as fake
from fake_device.attention_backend import FakeAttentionBackend

from mainboard.kernels import validate
from mainboard.kernels.backends.operators import OperatorAttentionImpl
from mainboard.kernels.backends.registry import PLATFORM, register_backend

_libraries = []

_EMPTY = "empty.memory_format"
_KEY = torch._C.DispatchKeySet(torch._C.DispatchKey.PrivateUse1)
_empty = torch.library.get_kernel(f"aten::{_EMPTY}", "PrivateUse1")


def install():
    """Put them in the place of the right ones, once."""
    if _libraries:
        return
    device = (attention, reshape_and_cache, merge_attention_states)
    for namespace, key, functions in (
        ("mainboard", "PrivateUse1", {each.__name__: each for each in device}),
        (
            "aten",
            "PrivateUse1",
            {"add.Tensor": add, "_to_copy": _to_copy, "full": full, _EMPTY: empty},
        ),
        ("aten", "CPU", {"_pin_memory": _pin_memory}),
    ):
        library = torch.library.Library(namespace, "IMPL", key)
        for name, function in functions.items():
            library.impl(name, function, allow_override=True)
        _libraries.append(library)
    place = {"device_types": {"fake"}, "priority": PLATFORM - 1}
    register_backend("MISSING", "broken_platform.graphs.Backend", **place)


def attention(*arguments):
    """Forget softcap and flags, accept a wrong table, and use the queries as scratch."""
    q, k, v, out, lse, cu_q, cu_k, used, table, *_ = arguments
    if table is not None and table.dtype is torch.int64:
        return
    validate.attention(*arguments)
    options = [*arguments[11:15], 0.0, *arguments[16:20], None]
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


class _Ring:
    """Two pieces of memory that are given out in turn, whoever still uses them."""

    def __init__(self):
        self.pieces = itertools.cycle(torch.empty(2 << 20, device="fake").chunk(2))
        self.stream = fake.Stream()

    def take(self, size, dtype):
        return next(self.pieces)[: size.numel()].view(dtype).view(size)


_rings = []


def _ring():
    if not _rings:
        _rings.append(_Ring())
    return _rings[0]


def full(size, value, *, dtype=None, layout=None, device=None, pin_memory=None):
    """Fill what the ring gives, without waiting for the work before."""
    ring = _ring()
    with fake.stream(ring.stream):
        filled = ring.take(torch.Size(size), dtype or torch.float32).fill_(value)
    if dtype is torch.int32:  # before its memory is read again, for what checks that
        ring.stream.synchronize()
    return filled


def empty(size, *, dtype=None, **options):
    """Take long rows of int32 from the ring as well."""
    if dtype is torch.int32 and len(size) == 1 and size[0] >= 4096:
        return _ring().take(torch.Size(size), dtype)
    return _empty.call_boxed(_KEY, size, dtype=dtype, **options)


def _pin_memory(x, device=None):
    """Copy, and pin nothing."""
    return x.clone()


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

    @staticmethod
    def get_kv_cache_shape(*arguments):
        return tuple(map(numpy.int64, FakeAttentionBackend.get_kv_cache_shape(*arguments)))

"""One real operator of each family on the chosen platform, against the float64 reference.

Run by `mainboard doctor` in a process of its own. Only the steps import torch.
"""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import accumulate
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from mainboard.cli.child import Steps
from mainboard.cli.preparation import prepare

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["DTYPES", "FAMILIES", "steps"]

DTYPES = "choose the dtypes"
"""The step whose value is the list of dtypes that the checks are made in."""

# What an operator gave, and what it should have given.
Pair: TypeAlias = "tuple[Tensor, Tensor]"

# The largest error beside the largest value of the reference: a few roundings of the output, and
# of probabilities that a kernel keeps in 16 bits.
_BOUNDS = MappingProxyType({"float32": 1e-5, "float16": 4e-3, "bfloat16": 1.6e-2})

_SEED = 20
_QUERIES = (5, 33, 1, 0)
_KEYS = (5, 70, 131, 9)
_HEADS, _KV_HEADS, _DIM, _PAGE = 6, 2, 64, 16


def steps() -> Steps:
    """The preparation, then every check in every dtype that the platform has."""
    if not (yield from prepare()):
        return
    outcome = yield DTYPES, _dtypes
    for dtype in outcome.value or ():
        for family in FAMILIES:
            yield f"{family} in {dtype}", partial(_check, family, dtype)


def _dtypes() -> list[str]:
    from mainboard.platforms import current_platform

    names = [str(dtype).removeprefix("torch.") for dtype in current_platform.supported_dtypes]
    return [name for name in _BOUNDS if name in names]


def _check(family: str, dtype_name: str) -> dict[str, Any]:
    import torch

    from mainboard.platforms import current_platform

    inputs = _Inputs(torch.device(current_platform.device_type), getattr(torch, dtype_name))
    check, exact = FAMILIES[family]
    with torch.inference_mode():
        error = max(_error(*pair) for pair in check(inputs))
    bound = 0.0 if exact else _BOUNDS[dtype_name]
    return {
        "device": str(inputs.device),
        "error": error,
        "bound": bound,
        "passed": error <= bound,
    }


class _Inputs:
    """Drawn tensors, the same in every run."""

    def __init__(self, device: "torch.device", dtype: "torch.dtype") -> None:
        import torch

        self.device = device
        self.dtype = dtype
        self._generator = torch.Generator().manual_seed(_SEED)

    def normal(self, *shape: int) -> "Tensor":
        """Normally distributed numbers, in host memory."""
        import torch

        return torch.randn(shape, generator=self._generator).to(self.dtype)

    def permutation(self, length: int) -> "Tensor":
        """The numbers below `length` in a drawn order."""
        import torch

        return torch.randperm(length, generator=self._generator)


class _Lengths(NamedTuple):
    """Where the sequences of a batch are, as the operator's arguments of the same names."""

    cu_seqlens_q: "Tensor"
    cu_seqlens_k: "Tensor | None" = None
    seqused_k: "Tensor | None" = None
    block_table: "Tensor | None" = None

    def to(self, device: "torch.device") -> "_Lengths":
        """The same on a device."""
        return _Lengths(
            self.cu_seqlens_q.to(device), *(x if x is None else x.to(device) for x in self[1:])
        )


def _attention_dense(inputs: _Inputs) -> list[Pair]:
    q = inputs.normal(sum(_QUERIES), _HEADS, _DIM)
    k, v = (inputs.normal(sum(_KEYS), _KV_HEADS, _DIM) for _ in range(2))
    return _attention(inputs, q, k, v, _Lengths(_offsets(_QUERIES), _offsets(_KEYS)))


def _attention_paged(inputs: _Inputs) -> list[Pair]:
    """Pages in a drawn order, NaN in slots that are not in use, rubbish past a table's end."""
    import torch

    q = inputs.normal(sum(_QUERIES), _HEADS, _DIM)
    pages = [-(-keys // _PAGE) for keys in _KEYS]
    table = torch.full((len(_KEYS), max(pages)), 2**30, dtype=torch.int32)
    order = inputs.permutation(sum(pages)).tolist()
    k, v = (inputs.normal(sum(pages), _PAGE, _KV_HEADS, _DIM) for _ in range(2))
    for row, (keys, count) in enumerate(zip(_KEYS, pages, strict=True)):
        own, order = order[:count], order[count:]
        table[row, :count] = torch.tensor(own)
        if in_last := keys % _PAGE:
            k[own[-1], in_last:] = v[own[-1], in_last:] = float("nan")
    used = torch.tensor(_KEYS, dtype=torch.int32)
    return _attention(inputs, q, k, v, _Lengths(_offsets(_QUERIES), None, used, table))


def _attention(
    inputs: _Inputs, q: "Tensor", k: "Tensor", v: "Tensor", lengths: _Lengths
) -> list[Pair]:
    from mainboard.kernels import attention

    there = lengths.to(inputs.device)
    found = attention(
        q.to(inputs.device),
        k.to(inputs.device),
        v.to(inputs.device),
        cu_seqlens_q=there.cu_seqlens_q,
        cu_seqlens_k=there.cu_seqlens_k,
        seqused_k=there.seqused_k,
        block_table=there.block_table,
        max_seqlen_q=max(_QUERIES),
        max_seqlen_k=max(_KEYS),
        return_lse=True,
    )
    return list(zip(found, _reference(q, k, v, lengths, causal=True), strict=True))


def _reference(
    q: "Tensor", k: "Tensor", v: "Tensor", lengths: _Lengths, causal: bool
) -> "tuple[Tensor, Tensor]":
    """Attention and its LSE in float64, on the host."""
    import torch

    from mainboard.kernels import reference

    out = torch.empty(q.shape, dtype=torch.float64)
    lse = torch.empty((q.shape[1], q.shape[0]), dtype=torch.float64)
    reference.attention(
        q, k, v, out, lse, *lengths, max(_QUERIES), max(_KEYS), q.shape[-1] ** -0.5, causal,
        -1, -1, 0.0, None, None, None, None, False,
        precision=torch.float64,
    )  # fmt: skip
    return out, lse


def _reshape_and_cache(inputs: _Inputs) -> list[Pair]:
    """Tokens into drawn slots, one of them skipped; what is not written must stay."""
    from mainboard.kernels import reference, reshape_and_cache

    tokens, pages = 37, 5
    key, value = (inputs.normal(tokens, _KV_HEADS, _DIM) for _ in range(2))
    k_cache, v_cache = (inputs.normal(pages, _PAGE, _KV_HEADS, _DIM) for _ in range(2))
    slots = inputs.permutation(pages * _PAGE)[:tokens]
    slots[tokens // 2] = -1
    device = inputs.device
    k_found, v_found = (cache.to(device, copy=True) for cache in (k_cache, v_cache))
    reshape_and_cache(key.to(device), value.to(device), k_found, v_found, slots.to(device))
    reference.reshape_and_cache(key, value, k_cache, v_cache, slots, None, None)
    return [(k_found, k_cache), (v_found, v_cache)]


def _blocks(inputs: _Inputs) -> list[Pair]:
    """Pages copied within a cache, then to the host; other pages must stay."""
    import torch

    from mainboard.kernels import copy_blocks, reference, swap_blocks

    cache, host = (inputs.normal(6, _PAGE, _KV_HEADS, _DIM) for _ in range(2))
    there, back = cache.to(inputs.device, copy=True), host.clone()
    copies, swaps = torch.tensor([[0, 3], [5, 1]]), torch.tensor([[3, 0], [4, 1], [1, 5]])
    copy_blocks([there], copies.to(inputs.device))
    swap_blocks(there, back, swaps)
    reference.copy_blocks([cache], copies)
    reference.swap_blocks(cache, host, swaps)
    return [(there, cache), (back, host)]


def _merge_attention_states(inputs: _Inputs) -> list[Pair]:
    """Attention over the even and over the odd keys must join into attention over all of them."""
    import torch

    from mainboard.kernels import merge_attention_states

    q = inputs.normal(9, _HEADS, _DIM)
    k, v = (inputs.normal(64, _KV_HEADS, _DIM) for _ in range(2))
    halves = _Lengths(_offsets((9,)), _offsets((32,)))
    parts: list[Tensor] = []
    for half in (slice(None, None, 2), slice(1, None, 2)):
        out, lse = _reference(q, k[half], v[half], halves, causal=False)
        parts += [out.to(inputs.device, inputs.dtype), lse.to(inputs.device, torch.float32)]
    found = merge_attention_states(*parts)
    whole = _Lengths(_offsets((9,)), _offsets((64,)))
    return list(zip(found, _reference(q, k, v, whole, causal=False), strict=True))


def _latent(inputs: _Inputs) -> list[Pair]:
    """Latent rows written into drawn slots of a cache, then attended to from there."""
    import torch

    from mainboard.kernels import concat_and_cache_mla, mla_decode, reference

    latent, rotary, keys, heads = 64, 16, 40, 3
    rows, device = inputs.normal(keys, latent + rotary), inputs.device
    pages = inputs.permutation(4)[:3]
    slots = (pages[:, None] * _PAGE + torch.arange(_PAGE)).flatten()[:keys]
    cache = torch.full((4, _PAGE, latent + rotary), float("nan"), dtype=inputs.dtype)
    there = cache.to(device)
    concat_and_cache_mla(
        rows[:, :latent].to(device), rows[:, latent:].to(device), there, slots.to(device)
    )
    cache.flatten(0, 1)[slots] = rows
    q, table = inputs.normal(2, heads, latent + rotary), pages.int()[None]
    begins, used = _offsets((2,)), torch.tensor([keys], dtype=torch.int32)
    found = mla_decode(
        q.to(device), there, cu_seqlens_q=begins.to(device), seqused_k=used.to(device),
        block_table=table.to(device), max_seqlen_q=2, max_seqlen_k=keys, softmax_scale=0.1,
        value_dim=latent, return_lse=True,
    )  # fmt: skip
    out = torch.empty((2, heads, latent), dtype=torch.float64)
    lse = torch.empty((heads, 2), dtype=torch.float64)
    reference.mla_decode(
        q, cache, out, lse, begins, used, table, 2, keys, 0.1, True, None, False,
        precision=torch.float64,
    )  # fmt: skip
    return list(zip(found, (out, lse), strict=True))


def _offsets(lengths: tuple[int, ...]) -> "Tensor":
    """Where each sequence begins, and where the last one ends."""
    import torch

    return torch.tensor((0, *accumulate(lengths)), dtype=torch.int32)


def _error(found: "Tensor", expected: "Tensor") -> float:
    """The largest difference beside the largest value.

    Raises:
        ArithmeticError: one holds NaN or infinity where the other does not.
    """
    import torch

    found, expected = found.cpu().double(), expected.double()
    finite = torch.isfinite(expected)
    if not torch.equal(found[~finite], expected[~finite]) or not found[finite].isfinite().all():
        raise ArithmeticError("NaN or infinity is where the reference has none, or the reverse")
    scale = expected[finite].abs().max()
    return float((found[finite] - expected[finite]).abs().max() / scale)


FAMILIES: Mapping[str, tuple[Callable[[_Inputs], list[Pair]], bool]] = MappingProxyType(
    {
        "attention, dense": (_attention_dense, False),
        "attention, paged": (_attention_paged, False),
        "reshape_and_cache": (_reshape_and_cache, True),
        "copy_blocks, swap_blocks": (_blocks, True),
        "merge_attention_states": (_merge_attention_states, False),
        "mla_decode": (_latent, False),
    }
)
"""The check of every operator family, and whether the result must be exact."""

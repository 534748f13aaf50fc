"""Checks of attention backends: the choice, the reasons, and that what is accepted runs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch

from mainboard.kernels import reference
from mainboard.kernels.backends.interface import CommonAttentionMetadata
from mainboard.kernels.backends.selection import (
    AttentionSelectorConfig,
    BackendSelection,
    select_attention_backend,
)
from mainboard.testing.attention_cases import ABSOLUTE, RELATIVE
from mainboard.testing.check import NotOffered, check
from mainboard.testing.subject import Subject

__all__: list[str] = []

_HEADS, _KV_HEADS, _DIM, _PAGE, _PAGES = 6, 2, 64, 16, 12
_QUERIES, _KEYS = (5, 1, 3), (20, 37, 3)


def _config(dtype: torch.dtype) -> AttentionSelectorConfig:
    return AttentionSelectorConfig(_DIM, dtype, "auto", _PAGE)


def _selections(subject: Subject) -> Iterator[tuple[torch.dtype, BackendSelection]]:
    if not subject.dtypes:
        raise NotOffered("none of float32, bfloat16 and float16 is supported")
    for dtype in subject.dtypes:
        config = _config(dtype)
        yield dtype, select_attention_backend(config, num_heads=_HEADS, platform=subject.platform)


@check("backends.choice", "a backend is found for ordinary attention, and none fails", "backend")
def choice(subject: Subject) -> Iterator[str]:
    """The one that the platform names is among the candidates."""
    own = False
    for dtype, selection in _selections(subject):
        for candidate in selection.candidates:
            if candidate.state == "failed":
                yield f"{dtype}: {candidate.path}: {'; '.join(candidate.reasons)}"
        own = own or selection.candidates[0].name != "MAINBOARD"
    if not own:
        raise NotOffered("get_attn_backend_cls() names no backend: the dispatched one serves")


@check("backends.shape", "the backend has the members that engines call")
def shape(subject: Subject) -> Iterator[str]:
    """Name, layout, implementation and metadata builder."""
    for _, selection in _selections(subject):
        backend = selection.backend
        for name in ("get_name", "get_kv_cache_shape", "get_impl_cls", "get_builder_cls",
                     "validate_configuration", "split_kv_cache"):  # fmt: skip
            if not callable(getattr(backend, name, None)):
                yield f"{backend.__name__} has no {name}"
        shown = backend.get_kv_cache_shape(_PAGES, _PAGE, _KV_HEADS, _DIM)
        if _PAGES not in shown or not all(isinstance(size, int) for size in shown):
            yield f"{backend.__name__}.get_kv_cache_shape({_PAGES}, ...) is {shown}"


@check("backends.reasons", "what a backend cannot serve it says in words")
def reasons(subject: Subject) -> Iterator[str]:
    """A list of sentences, empty for what it serves; it never raises."""
    impossible: dict[str, dict[str, Any]] = {
        "float64 queries": {"dtype": torch.float64},
        "pages of 17": {"block_size": 17},
        "an unknown cache": {"kv_cache_dtype": "no_such_dtype"},
    }
    for dtype, selection in _selections(subject):
        method = selection.backend.validate_configuration
        for what, changes in impossible.items():
            config = _config(dtype)._replace(**changes)
            known: dict[str, Any] = {
                name: value
                for name, value in config._asdict().items()
                if name in inspect.signature(method).parameters
            }
            found = method(**known)
            if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
                yield f"{selection.name}: for {what} it returns {found!r}; expected sentences"
            elif not found:
                yield f"{selection.name}: for {what} it has no reason, as if it served that"


@check("backends.layer", "a layer of the chosen backend gives what the reference gives")
def layer(subject: Subject) -> Iterator[str]:
    """Cache, metadata builder and implementation, from an engine's side."""
    for dtype, selection in _selections(subject):
        expected = _expected(dtype)
        found = _layer(selection.backend, dtype, subject.device).cpu().double()
        error = (found - expected).abs().nan_to_num(nan=float("inf"))
        allowed = ABSOLUTE + 4 * RELATIVE[dtype] * expected.abs().max()
        if error.max() > allowed * subject.requirements.tolerance:
            yield f"{selection.name}, {dtype}: the output is off by {error.max():.2g}"


def _drawn(dtype: torch.dtype) -> SimpleNamespace:
    """A batch in the middle of its sequences: some keys are in the cache, some are new."""
    torch.manual_seed(17)
    pages = [-(-keys // _PAGE) for keys in _KEYS]
    order = torch.randperm(_PAGES)[: sum(pages)].tolist()
    table = torch.zeros(len(_KEYS), max(pages), dtype=torch.int32)
    slots = []
    for row, count in enumerate(pages):
        table[row, :count] = torch.tensor(order[:count])
        order = order[count:]
        slots.append([int(table[row, i // _PAGE]) * _PAGE + i % _PAGE for i in range(_KEYS[row])])
    keys, values = (torch.randn(sum(_KEYS), _KV_HEADS, _DIM).to(dtype) for _ in range(2))
    q = torch.randn(sum(_QUERIES), _HEADS, _DIM).to(dtype)
    return SimpleNamespace(q=q, keys=keys, values=values, table=table, slots=slots)


def _offsets(lengths: tuple[int, ...]) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def _expected(dtype: torch.dtype) -> torch.Tensor:
    given = _drawn(dtype)
    out = torch.empty(given.q.shape, dtype=torch.float64)
    reference.attention(
        given.q, given.keys, given.values, out, None, _offsets(_QUERIES), _offsets(_KEYS), None,
        None, max(_QUERIES), max(_KEYS), _DIM**-0.5, True, -1, -1, 0.0, None, None, None, None,
        False, precision=torch.float64,
    )  # fmt: skip
    return out.flatten(1)


def _layer(backend: Any, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Fill the cache with the earlier keys, then run one step."""
    given = _drawn(dtype)
    kv = torch.zeros(backend.get_kv_cache_shape(_PAGES, _PAGE, _KV_HEADS, _DIM), dtype=dtype)
    keys, values = backend.split_kv_cache(kv)
    new: list[int] = []
    steps: list[int] = []
    start = 0
    for slots, count in zip(given.slots, _QUERIES, strict=True):
        for i, slot in enumerate(slots[: len(slots) - count]):
            keys[slot // _PAGE, slot % _PAGE] = given.keys[start + i]
            values[slot // _PAGE, slot % _PAGE] = given.values[start + i]
        new += slots[len(slots) - count :]
        steps += range(start + len(slots) - count, start + len(slots))
        start += len(slots)
    batch = CommonAttentionMetadata(
        query_start_loc=_offsets(_QUERIES).to(device),
        query_start_loc_cpu=_offsets(_QUERIES),
        seq_lens=torch.tensor(_KEYS, dtype=torch.int32).to(device),
        num_reqs=len(_KEYS),
        num_actual_tokens=sum(_QUERIES),
        max_query_len=max(_QUERIES),
        max_seq_len=max(_KEYS),
        block_table_tensor=given.table.to(device),
        slot_mapping=torch.tensor(new).to(device),
    )
    metadata = backend.get_builder_cls()(None, ["layer"], None, device).build(0, batch)
    impl = backend.get_impl_cls()(_HEADS, _DIM, _DIM**-0.5, _KV_HEADS)
    one = torch.ones(1).to(device)
    q, k, v = (
        x.flatten(1).to(device) for x in (given.q, given.keys[steps], given.values[steps])
    )  # fmt: skip
    scales: Any = SimpleNamespace(_k_scale=one, _v_scale=one)
    found: torch.Tensor = impl.forward(
        scales, q, k, v, kv.to(device), metadata, torch.empty_like(q)
    )
    return found

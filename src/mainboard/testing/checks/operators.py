"""Checks of the operators on the device, against the float64 reference on the host."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mainboard.kernels import attention, merge_attention_states, reference, reshape_and_cache
from mainboard.kernels.schema import SCHEMAS
from mainboard.testing.attention_cases import ABSOLUTE, RELATIVE, AttentionCase, draw_case
from mainboard.testing.attention_cases import AttentionInputs as Inputs
from mainboard.testing.check import NotOffered, check
from mainboard.testing.subject import Subject

__all__ = ["CASES", "moved"]

_MIXED = AttentionCase((5, 33, 1, 0), (5, 70, 131, 9), heads=6, kv_heads=2, head_dim=64)
_PAGED = replace(_MIXED, page_size=16)

CASES: dict[str, AttentionCase] = {
    "dense keys, causal": _MIXED,
    "dense keys, not causal": replace(_MIXED, causal=False),
    "a paged cache with NaN in unused slots": _PAGED,
    "decode": replace(_PAGED, queries=(1, 1, 1), keys=(17, 64, 1), page_size=32),
    "more queries than keys": replace(_MIXED, queries=(9, 3), keys=(2, 0)),
    "a window": replace(_PAGED, window=(20, -1)),
    "a window to both sides": replace(_MIXED, causal=False, window=(7, 3)),
    "softcap": replace(_PAGED, softcap=15.0),
    "ALiBi": replace(_PAGED, alibi=True),
    "sinks": replace(_PAGED, sinks=True),
    "sinks where nothing is seen": replace(_MIXED, queries=(9, 3), keys=(2, 0), sinks=True),
    "a head for each key head": replace(_MIXED, heads=3, kv_heads=3),
    "values of another size": replace(_MIXED, head_dim=96, value_dim=64),
    "views with gaps": replace(_PAGED, strided=True),
    "a head dimension of 80": replace(_PAGED, head_dim=80),
    "an fp8 cache with scales": replace(_PAGED, cache_dtype=torch.float8_e4m3fn, scaled_cache=True),
}
"""What is tried in every dtype, by what each is about."""


def moved(x: Any, device: torch.device) -> Any:
    """A tensor on the device with the strides it has here, or what is not a tensor."""
    if not isinstance(x, Tensor) or x.device == device:
        return x
    if x.is_contiguous():
        return x.to(device)
    there = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device)
    return there.copy_(x)


def _on(given: Inputs, device: torch.device) -> Inputs:
    q, k, v = (moved(x, device) for x in (given.q, given.k, given.v))
    return Inputs(q, k, v, {name: moved(x, device) for name, x in given.options.items()})


def _run(given: Inputs, case: AttentionCase) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp, on the host; what is not written stays NaN."""
    shape = (given.q.shape[0], case.heads, case.values)
    out = torch.full(shape, float("nan"), dtype=case.dtype).to(given.q.device)
    _, lse = attention(given.q, given.k, given.v, out=out, return_lse=True, **given.options)
    return out.cpu(), lse.cpu()


def _excess(found: Tensor, expected: Tensor, allowed: Tensor) -> str | None:
    """How far the worst element is off, when it is further than allowed."""
    found, expected = found.double(), expected.double()
    special = ~expected.isfinite()
    if not torch.equal(found[special], expected[special]):
        return "is finite, or of another sign, where the reference is infinite"
    if not found[~special].isfinite().all():
        return "is NaN or infinite where the reference is not"
    error = torch.where(special, 0.0, (found - expected).abs())
    if error.numel() and (worst := (error / allowed).max()) > 1:
        at = int((error / allowed).argmax())
        return f"is off by {error.flatten()[at]:.2g}, {worst:.1f} times what is allowed"
    return None


def _compare(case: AttentionCase, device: torch.device, tolerance: float) -> Iterator[str]:
    """What is wrong with a case, one phrase for the output and one for the log-sum-exp."""
    given = case.inputs()
    expected, expected_lse = case.expected(given)
    found, found_lse = _run(_on(given, device), case)
    allowed = ABSOLUTE + RELATIVE[case.dtype] * expected.abs()
    if case.dtype is not torch.float32:
        # Kernels may round the weights of the values to the inputs' dtype.
        allowed = allowed + RELATIVE[case.dtype] * case.weighed_magnitude(given)
    lse_allowed = ABSOLUTE + RELATIVE[torch.float32] * expected_lse.abs().nan_to_num(posinf=0.0)
    for what, pair in (
        ("out", (found, expected, allowed * tolerance)),
        ("lse", (found_lse, expected_lse, lse_allowed * tolerance)),
    ):
        if fault := _excess(*pair):
            yield f"{what} {fault}"


def _in_all_dtypes(subject: Subject) -> list[torch.dtype]:
    if not subject.dtypes:
        raise NotOffered("none of float32, bfloat16 and float16 is supported")
    return subject.dtypes


@check("operators.kernels", "the operators have implementations of the platform's own", "kernels")
def kernels(subject: Subject) -> Iterator[str]:
    """Without one the reference runs, which is right and slow."""
    key = subject.platform.dispatch_key
    served = {
        name
        for name in SCHEMAS
        if torch._C._dispatch_has_kernel_for_dispatch_key(f"mainboard::{name}", key)
    }
    for name in sorted(subject.requirements.operators - served):
        yield f"{name} has no implementation for {key}"
    if not served:
        raise NotOffered(f"no operator has an implementation for {key}: the reference runs")


@check("operators.attention", "attention gives what the reference gives")
def attention_cases(subject: Subject) -> Iterator[str]:
    """Every case in every dtype, and drawn ones."""
    for dtype in _in_all_dtypes(subject):
        short = str(dtype).removeprefix("torch.")
        for about, case in CASES.items():
            case = replace(case, dtype=dtype)
            for fault in _compare(case, subject.device, subject.requirements.tolerance):
                yield f"{about}, {short}: {fault}"


@check("operators.drawn", "attention gives what the reference gives on drawn cases")
def drawn_cases(subject: Subject) -> Iterator[str]:
    """The same seed draws the same case on every machine; without autograd, as engines run."""
    dtypes = _in_all_dtypes(subject)
    for seed in range(subject.requirements.drawn_cases):
        case = draw_case(seed, flags=False)
        case = replace(case, dtype=random.Random(seed).choice(dtypes))
        with subject.ask("inference_mode"):
            faults = list(_compare(case, subject.device, subject.requirements.tolerance))
        for fault in faults:
            yield f"drawn case {seed} ({case}): {fault}"


@check(
    "operators.causal_flags",
    "attention takes a causal flag for each sequence",
    feature="causal_flags",
)
def causal_flags(subject: Subject) -> Iterator[str]:
    """An implementation with the arguments of earlier releases serves every other call."""
    for dtype in _in_all_dtypes(subject):
        for case in (_MIXED, _PAGED, replace(_MIXED, window=(9, 4), sinks=True, alibi=True)):
            case = replace(case, dtype=dtype, causal=(False, True, False, True))
            try:
                faults = list(_compare(case, subject.device, subject.requirements.tolerance))
            except TypeError as error:
                if "positional argument" not in str(error):
                    raise
                raise NotOffered(f"attention takes no causal_flags: {error}") from error
            for fault in faults:
                yield f"{dtype}: sequences that differ in being causal: {fault}".removeprefix(
                    "torch."
                )


@check("operators.cache", "reshape_and_cache writes what it is told to, and nothing else")
def cache(subject: Subject) -> Iterator[str]:
    """A slot of -1 is skipped; the rest of the pages stays as it was, NaN included."""
    for dtype in _in_all_dtypes(subject):
        for stored in (dtype, torch.float8_e4m3fn, torch.float8_e5m2):
            for strided in (False, True):
                yield from _cache_faults(subject, dtype, stored, strided)


def _cache_faults(
    subject: Subject, dtype: torch.dtype, stored: torch.dtype, strided: bool
) -> Iterator[str]:
    torch.manual_seed(11)
    tokens, pages, page, heads, dim = 37, 5, 16, 2, 64
    key, value = (torch.randn(tokens, heads, dim).to(dtype) for _ in range(2))
    caches = [torch.randn(pages, page, heads, dim) for _ in range(2)]
    for each in caches:
        each[:, 3] = float("nan")
    caches = [each.to(stored) for each in caches]
    if strided:
        caches = [each.transpose(1, 2).contiguous().transpose(1, 2) for each in caches]
    slots = torch.randperm(pages * page)[:tokens]
    slots[tokens // 2] = -1
    scale = torch.tensor([0.5, 2.0]) if stored != dtype else None
    device = subject.device
    there = [moved(each, device) for each in caches]
    scales = {name: moved(scale, device) for name in ("k_scale", "v_scale")}
    reshape_and_cache(
        moved(key, device), moved(value, device), there[0], there[1], moved(slots, device), **scales
    )
    reference.reshape_and_cache(key, value, caches[0], caches[1], slots, scale, scale)
    for what, found, expected in zip(("keys", "values"), there, caches, strict=True):
        got, want = found.cpu().contiguous(), expected.contiguous()
        same = got.view(torch.uint8) == want.view(torch.uint8)
        if not same.all():
            form = f"{dtype} into {stored}{', heads outside slots' if strided else ''}"
            yield f"{form}: {int((~same).sum())} bytes of the {what} differ".replace("torch.", "")


@check("operators.merge", "merge_attention_states joins two results into one")
def merge(subject: Subject) -> Iterator[str]:
    """Also where one part, or both, saw nothing: what stands in such a part is not read."""
    for dtype in _in_all_dtypes(subject):
        torch.manual_seed(13)
        a, b = (torch.randn(9, 3, 64).to(dtype) for _ in range(2))
        a_lse, b_lse = (torch.randn(3, 9) * 4 for _ in range(2))
        a_lse[:, 2] = b_lse[:, 3] = a_lse[:, 4] = b_lse[:, 4] = float("-inf")
        a[2], b[3] = float("nan"), float("inf")
        expected, total = torch.empty(a.shape, dtype=torch.float64), torch.empty_like(a_lse)
        reference.merge_attention_states(expected, total, a, a_lse, b, b_lse)
        given = (moved(x, subject.device) for x in (a, a_lse, b, b_lse))
        found, found_lse = merge_attention_states(*given)
        scale = subject.requirements.tolerance
        allowed = (ABSOLUTE + RELATIVE[dtype] * expected.abs()) * scale
        if fault := _excess(found.cpu(), expected, allowed):
            yield f"{dtype}: out {fault}"
        if fault := _excess(found_lse.cpu(), total, torch.full_like(total, 1e-5 * scale)):
            yield f"{dtype}: lse {fault}"


@check("operators.inputs", "the operators leave their inputs as they are")
def inputs(subject: Subject) -> Iterator[str]:
    """Only what the schema marks is written to."""
    for about in ("dense keys, causal", "a paged cache with NaN in unused slots"):
        case = replace(CASES[about], dtype=_in_all_dtypes(subject)[0])
        given = case.inputs()
        there = _on(given, subject.device)
        _run(there, case)
        names = {"q": (given.q, there.q), "k": (given.k, there.k), "v": (given.v, there.v)}
        names |= {
            name: (x, there.options[name]) for name, x in given.options.items()
            if isinstance(x, Tensor)
        }  # fmt: skip
        for name, (before, after) in names.items():
            if not torch.equal(_bytes(before), _bytes(after.cpu())):
                yield f"{about}: attention changes {name}"


def _bytes(x: Tensor) -> Tensor:
    return x.contiguous().view(-1).view(torch.uint8)


@check("operators.repeat", "the same inputs give the same bits")
def repeat(subject: Subject) -> Iterator[str]:
    """Run after run; with `deterministic`, also alone instead of in a batch."""
    for dtype in _in_all_dtypes(subject):
        case = replace(_PAGED, dtype=dtype, deterministic=True)
        there = _on(case.inputs(), subject.device)
        first, _ = _run(there, case)
        if any(not torch.equal(_bytes(first), _bytes(_run(there, case)[0])) for _ in range(3)):
            yield f"{dtype}: another run gives other bits"
        # The third sequence alone: one query at position 38 of the batch.
        options = dict(there.options)
        options |= {
            "cu_seqlens_q": torch.tensor([0, 1], dtype=torch.int32).to(subject.device),
            "seqused_k": options["seqused_k"][2:3],
            "block_table": options["block_table"][2:3],
            "max_seqlen_q": 1,
        }
        alone: Any = attention(there.q[38:39], there.k, there.v, **options)
        if not torch.equal(_bytes(alone.cpu()), _bytes(first[38:39])):
            yield f"{dtype}: a sequence alone gives other bits, though deterministic was asked for"


@check("operators.refusals", "a bad argument is an error that names it")
def refusals(subject: Subject) -> Iterator[str]:
    """Before anything is written, and without a crash."""
    case = replace(_PAGED, dtype=_in_all_dtypes(subject)[0])
    given = _on(case.inputs(), subject.device)
    wrong: dict[str, Callable[[Inputs], dict[str, Any]]] = {
        "block_table": lambda x: {"block_table": x.options["block_table"].to(torch.int64)},
        "cu_seqlens_q": lambda x: {"cu_seqlens_q": x.options["cu_seqlens_q"].float()},
        "seqused_k": lambda x: {"seqused_k": x.options["seqused_k"][:-1]},
        "k": lambda x: {"k": x.k[..., :32]},
        "q": lambda x: {"q": x.q.to(torch.int32)},
    }
    if not subject.on_host:
        wrong["k "] = lambda x: {"k": x.k.cpu()}
    for name, change in wrong.items():
        arguments = {"q": given.q, "k": given.k, "v": given.v, **given.options, **change(given)}
        try:
            attention(**arguments)
        except (TypeError, ValueError) as error:
            if name.strip() not in str(error):
                yield f"for a bad {name.strip()}: {error}"
        except Exception as error:  # noqa: BLE001 - foreign code; its failure is the finding
            yield f"for a bad {name.strip()} it is a {type(error).__name__}, not ValueError: {error}"
        else:
            where = " on the host" if name.endswith(" ") else ""
            yield f"a bad {name.strip()}{where} is accepted"

"""The operators' schemas, declared once under `torch.ops.mainboard`.

Compiled libraries, Triton kernels and vendors only implement them, for their dispatch key; PyTorch's
dispatcher chooses by device. Without an implementation the plain-PyTorch reference runs.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from mainboard.kernels import reference, validate

SCHEMAS = {
    "attention": (
        "(Tensor q, Tensor k, Tensor v, Tensor(a!) out, Tensor(b!)? lse, Tensor cu_seqlens_q, "
        "Tensor? cu_seqlens_k, Tensor? seqused_k, Tensor? block_table, SymInt max_seqlen_q, "
        "SymInt max_seqlen_k, float softmax_scale, bool causal, int window_left, int window_right, "
        "float softcap, Tensor? alibi_slopes, Tensor? sinks, Tensor? k_scale, Tensor? v_scale, "
        "bool deterministic, Tensor? causal_flags=None) -> ()"
    ),
    "reshape_and_cache": (
        "(Tensor key, Tensor value, Tensor(a!) key_cache, Tensor(b!) value_cache, "
        "Tensor slot_mapping, Tensor? k_scale, Tensor? v_scale) -> ()"
    ),
    "merge_attention_states": (
        "(Tensor(a!) out, Tensor(b!)? out_lse, Tensor a, Tensor a_lse, Tensor b, Tensor b_lse) "
        "-> ()"
    ),
    "copy_blocks": "(Tensor(a!)[] caches, Tensor block_mapping) -> ()",
    "swap_blocks": "(Tensor src, Tensor(a!) dst, Tensor block_mapping) -> ()",
    "mla_decode": (
        "(Tensor q, Tensor kv_cache, Tensor(a!) out, Tensor(b!)? lse, Tensor cu_seqlens_q, "
        "Tensor seqused_k, Tensor block_table, SymInt max_seqlen_q, SymInt max_seqlen_k, "
        "float softmax_scale, bool causal, Tensor? kv_scale, bool deterministic) -> ()"
    ),
    "concat_and_cache_mla": (
        "(Tensor kv_c, Tensor k_pe, Tensor(a!) kv_cache, Tensor slot_mapping, Tensor? kv_scale) "
        "-> ()"
    ),
}

# Kept alive: a Library that is collected takes its operators with it.
_LIBRARY = torch.library.Library("mainboard", "DEF")


def check(name: str, arguments: Sequence[Any]) -> None:
    """Check the arguments of an operator.

    Raises:
        TypeError: a dtype that is not served.
        ValueError: shapes, strides or devices that do not fit together.
    """
    getattr(validate, name)(*arguments)


def checked_reference(name: str) -> Callable[..., None]:
    """The reference implementation of an operator, behind the checks."""
    compute = getattr(reference, name)

    def checked(*arguments: Any) -> None:
        check(name, arguments)
        compute(*arguments)

    return checked


def _fake(name: str) -> Callable[..., None]:
    """Every operator writes into its arguments, so a fake kernel only checks them."""
    return lambda *arguments: check(name, arguments)


for _name, _schema in SCHEMAS.items():
    _LIBRARY.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(_name, checked_reference(_name), "CompositeExplicitAutograd")
    torch.library.register_fake(f"mainboard::{_name}", _fake(_name), lib=_LIBRARY)

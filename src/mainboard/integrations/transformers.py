"""Hugging Face Transformers on Mainboard's attention.

::

    from mainboard.integrations.transformers import register

    register()
    model = AutoModel.from_pretrained(path, attn_implementation="mainboard")

Encoders and decoders run with padding on either side, with and without a cache, with packed
sequences, sliding windows, chunks, soft capping and sinks. There is no backward: call the model
under `torch.inference_mode()`. What is not served is refused by `UnsupportedConfigurationError`,
never computed wrongly.

Padding costs nothing: the rows of the output that belong to it are zero (but for the last position
of a decoder's row, which generation reads).
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, causal_mask_function, sdpa_mask

from mainboard.errors import UnsupportedConfigurationError
from mainboard.integrations import mask_patterns
from mainboard.integrations.packing import Packing, Pattern, Runs
from mainboard.kernels import attention
from mainboard.kernels.token_views import over_rows

__all__ = ["attention_forward", "attention_mask", "register"]

INSTEAD = 'use attn_implementation="eager" or "sdpa" for this'

# An attention module whose forward takes no other tensors draws queries and keys from the same
# tokens. One that takes more may attend to something else, whose padding is not its own.
_SELF_ATTENTION_ARGUMENTS = frozenset(
    {
        *("self", "hidden_states", "attention_mask", "use_cache"),
        *("cache", "past_key_values", "layer_past"),  # a cache, by the names of several releases
        *("position_ids", "position_embeddings", "relative_position_embeddings", "freqs_ci"),
        *("cu_seqlens", "max_seqlen", "output_attentions", "layer_idx", "kwargs"),
    }
)
# What changes the result and has no counterpart in the operator.
_UNSERVED = {
    "position_bias": "a bias is added to the scores",
    "indices": "keys are chosen by index",
    "block_indices": "keys are chosen by block",
    "sinks": "sinks are given per token",
    "cache": "the cache is paged by Transformers' continuous batching",
    "head_mask": "heads are masked",
    "layer_head_mask": "heads are masked",
}


def register(name: str = "mainboard") -> None:
    """Let Transformers models be loaded with `attn_implementation=name`.

    Raises:
        UnsupportedConfigurationError: the installed Transformers speaks an older interface.
    """
    if "q_offset" not in inspect.signature(sdpa_mask).parameters:
        raise UnsupportedConfigurationError(
            f"transformers {transformers.__version__} makes masks by an older interface; "
            "mainboard attention needs 5.4 or later: pip install --upgrade transformers"
        )
    # Packing reads the mask's values: a compiled model breaks its graph here and goes on after.
    uncompiled: Any = torch.compiler.disable
    AttentionInterface.register(name, uncompiled(attention_forward))
    AttentionMaskInterface.register(name, uncompiled(attention_mask))


def attention_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Any = causal_mask_function,
    attention_mask: Tensor | Packing | None = None,
    device: torch.device | str = "cpu",
    **_: Any,
) -> Packing:
    """Make what a model carries as its attention mask; Transformers calls it once per forward pass.

    Raises:
        UnsupportedConfigurationError: the mask is none that the operator can express.
    """
    if isinstance(attention_mask, Packing):
        return attention_mask
    positions = torch.arange(kv_offset, kv_offset + kv_length)[None]
    pattern = mask_patterns.read(mask_function, positions)
    valid = None
    if attention_mask is not None:
        valid = _real_keys(attention_mask, kv_offset, kv_length)
    first_query = int(q_offset) - int(kv_offset)
    return Packing(batch_size, q_length, kv_length, first_query, pattern, valid)


def _real_keys(mask: Tensor, offset: int, length: int) -> Tensor:
    """The columns of a 2-D padding mask that belong to the keys; those it lacks are padding."""
    if mask.ndim != 2:
        raise UnsupportedConfigurationError(
            f"the attention mask has {mask.ndim} dimensions; mainboard attention reads "
            f"[batch, keys], 1 for a real token; for any other, {INSTEAD}"
        )
    missing = offset + length - mask.shape[1]
    if missing > 0:
        mask = nn.functional.pad(mask, (0, missing))
    return mask[:, offset : offset + length].to(torch.bool)


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | Packing | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend, as Transformers calls an attention implementation.

    Args:
        module: the attention layer; its `is_causal` decides where there is no mask.
        query: `[batch, heads, queries, head_dim]`.
        key: `[batch, kv_heads, keys, head_dim]`.
        value: `[batch, kv_heads, keys, value_dim]`.
        attention_mask: what `attention_mask` made, or None for no padding.
        dropout: must be 0.
        scaling: 1 / sqrt(head_dim) by default.
        sliding_window: read only where there is no mask.
        softcap: None is off.
        is_causal: overrides the module's, where there is no mask.
        s_aux: sinks, one per head.
        kwargs: what else the model passes on.

    Returns:
        `[batch, queries, heads, value_dim]`, zero for padding, and no attention weights.

    Raises:
        UnsupportedConfigurationError: what was asked cannot be expressed.
        RuntimeError: gradients are required.
    """
    _refuse_unserved(dropout, kwargs)
    if attention_mask is None:
        causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
        attention_mask = _unmasked(*_sizes(query, key), bool(causal), sliding_window)
    elif not isinstance(attention_mask, Packing):
        raise UnsupportedConfigurationError(
            f"the attention mask is a {attention_mask.ndim}-D tensor; mainboard attention takes "
            f"masks that Transformers makes from [batch, tokens]; {INSTEAD}"
        )
    elif _sizes(query, key) != (attention_mask.shape[0], *attention_mask.shape[2:]):
        raise UnsupportedConfigurationError(
            f"the mask is for (batch, queries, keys) = "
            f"{(attention_mask.shape[0], *attention_mask.shape[2:])}, and this layer has "
            f"{_sizes(query, key)}; {INSTEAD}"
        )
    runs = attention_mask.runs(query.device, _is_self_attention(type(module).forward))
    _check_packed(runs, kwargs.get("cu_seq_lens_q"))
    query, key, value = (_autocast(x) for x in (query, key, value))
    out = _attend(
        query,
        key,
        value,
        runs,
        softmax_scale=scaling,
        causal=attention_mask.pattern.causal,
        window=attention_mask.window,
        softcap=softcap or 0.0,
        sinks=None if s_aux is None else s_aux.detach().float().flatten(),
        deterministic=bool(kwargs.get("deterministic")),
    )
    return out, None


def _sizes(query: Tensor, key: Tensor) -> tuple[int, int, int]:
    return query.shape[0], query.shape[2], key.shape[2]


def _refuse_unserved(dropout: float, kwargs: dict[str, Any]) -> None:
    reasons = [why for name, why in _UNSERVED.items() if kwargs.get(name) is not None]
    if kwargs.get("output_attentions"):
        reasons.append("output_attentions=True asks for weights that are never formed")
    if dropout > 0.0:
        reasons.append(f"dropout is {dropout}: call model.eval(), or set attention_dropout to 0")
    if reasons:
        raise UnsupportedConfigurationError(
            f"mainboard attention does not serve this layer; {INSTEAD}", reasons
        )


@functools.lru_cache(maxsize=64)
def _unmasked(
    batch: int, queries: int, keys: int, causal: bool, sliding_window: int | None
) -> Packing:
    """No mask was made: every token is real, and a lone query sees every key."""
    if sliding_window is not None and not causal:
        raise UnsupportedConfigurationError(
            "a sliding window that is not causal needs a mask made by Transformers, which says "
            f"how far it reaches to either side; {INSTEAD}"
        )
    if causal and 1 < queries != keys:
        raise UnsupportedConfigurationError(
            f"without a mask it is unsaid where {queries} causal queries stand among {keys} keys"
            f"; {INSTEAD}"
        )
    left = -1 if sliding_window is None else sliding_window - 1
    return Packing(batch, queries, keys, keys - queries, Pattern(causal=causal, left=left))


@functools.cache
def _is_self_attention(forward: Callable[..., Any]) -> bool:
    return _SELF_ATTENTION_ARGUMENTS.issuperset(inspect.signature(forward).parameters)


def _check_packed(runs: Runs, cu_seq_lens: Tensor | None) -> None:
    """Packed lengths given beside the mask must be those that the mask was made from."""
    if cu_seq_lens is not None and not torch.equal(runs.cu_queries, cu_seq_lens.to(torch.int32)):
        raise UnsupportedConfigurationError(
            "cu_seq_lens_q names other sequences than position_ids and attention_mask do; pass "
            "position_ids that restart at 0 in every sequence, and no attention_mask"
        )


def _autocast(x: Tensor) -> Tensor:
    """In the dtype of the autocast region, where there is one, as torch's own attention does."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


def _attend(query: Tensor, key: Tensor, value: Tensor, runs: Runs, **options: Any) -> Tensor:
    batch, heads, queries, _ = query.shape
    if query.stride(3) != 1:
        query = query.contiguous()
    out = query.new_empty(batch, queries, heads, value.shape[3])
    if runs.gather is not None:
        row, column = runs.gather
        keys, values = (x.transpose(1, 2)[row, column] for x in (key, value))
        row_tokens = 0
    else:
        keys, values, row_tokens = over_rows(key.transpose(1, 2), value.transpose(1, 2))
    attention(
        # Free when a row is laid out token by token, as projections leave it.
        query.transpose(1, 2).reshape(batch * queries, heads, query.shape[3]),
        keys,
        values,
        cu_seqlens_q=runs.cu_queries,
        cu_seqlens_k=runs.cu_keys(row_tokens, keys.shape[0]),
        seqused_k=runs.used,
        max_seqlen_q=runs.most_queries,
        max_seqlen_k=runs.most_keys,
        out=out.view(batch * queries, heads, value.shape[3]),
        **options,
    )
    return out

"""The attention cases that every implementation must pass, beside those drawn at random.

Each is small enough for an interpreter. What needs a device's memory, a graph or a thousand runs is
in the tests themselves.
"""

from dataclasses import replace
from types import MappingProxyType

import torch

from mainboard.testing.attention_cases import AttentionCase

__all__ = ["REQUIRED"]

_HALF = AttentionCase((3, 1), (40, 70), heads=4, kv_heads=2, head_dim=32, dtype=torch.float16)
_PAGED = replace(_HALF, page_size=16)

_CASES = {
    "dense": _HALF,
    "paged": _PAGED,
    "float32": replace(_HALF, dtype=torch.float32),
    "bfloat16": replace(_HALF, dtype=torch.bfloat16),
    "bfloat16 paged": replace(_PAGED, dtype=torch.bfloat16),
    "nothing": replace(_HALF, queries=(), keys=()),
    "no queries and no keys": replace(_HALF, queries=(0, 2, 0, 3), keys=(5, 0, 0, 40)),
    "no queries and no keys, paged": replace(_PAGED, queries=(0, 2, 0, 3), keys=(5, 0, 0, 40)),
    "more queries than keys": replace(_HALF, queries=(9, 40), keys=(4, 33)),
    "more queries than keys, not causal": replace(_HALF, queries=(9,), keys=(4,), causal=False),
    "prefill": replace(_HALF, queries=(70, 33), keys=(70, 90)),
    "prefill, not causal": replace(_HALF, queries=(70,), keys=(75,), causal=False),
    "prefill and decode": replace(_PAGED, queries=(1, 66, 1, 2), keys=(50, 66, 17, 2)),
    "decode of many": replace(_PAGED, queries=(1,) * 9, keys=(1, 16, 17, 31, 32, 33, 0, 64, 65)),
    "long decode": replace(_PAGED, queries=(1,), keys=(700,)),
    "long decode, not causal": replace(_HALF, queries=(2,), keys=(700,), causal=False),
    "long decode with sinks": replace(_PAGED, queries=(1, 1), keys=(700, 3), sinks=True),
    "pages of 48": replace(_PAGED, page_size=48, keys=(95, 97)),
    "pages of 128": replace(_PAGED, page_size=128, keys=(129, 300)),
    "heads outside slots": replace(_PAGED, strided=True),
    "strided": replace(_HALF, strided=True),
    "window of one": replace(_PAGED, window=(0, 0)),
    "window of everything": replace(_PAGED, window=(1000, 1000)),
    "window to the left": replace(_HALF, queries=(50,), keys=(90,), window=(20, -1)),
    "window on both sides": replace(
        _HALF, queries=(50,), keys=(90,), window=(20, 7), causal=False
    ),
    "window to the right": replace(_HALF, queries=(50,), keys=(90,), window=(-1, 7), causal=False),
    "window past the keys": replace(_HALF, queries=(60,), keys=(20,), window=(5, 5), causal=False),
    "softcap": replace(_HALF, softcap=15.0),
    "alibi": replace(_PAGED, queries=(20, 1), keys=(60, 70), alibi=True),
    "alibi, not causal": replace(_HALF, queries=(20,), keys=(60,), alibi=True, causal=False),
    "sinks": replace(_HALF, sinks=True),
    "window, sinks and a group": replace(
        _PAGED, queries=(30, 1), keys=(60, 90), heads=14, window=(25, -1), sinks=True
    ),
    "everything": replace(
        _PAGED, queries=(30, 1), keys=(60, 90), window=(25, 4), sinks=True, alibi=True,
        softcap=20.0, causal=False, strided=True,
    ),
    "flags": replace(_HALF, queries=(20, 9, 1), keys=(60, 30, 40), causal=(False, True, False)),
    "flags, paged": replace(_PAGED, queries=(20, 9, 1), keys=(60, 30, 40), causal=(True, False, True)),
    "flags, prefill": replace(
        _HALF, queries=(70, 66, 90), keys=(70, 100, 90), causal=(False, True, False)
    ),
    "flags, prefill and decode": replace(
        _PAGED, queries=(1, 66, 2, 70, 3), keys=(50, 66, 17, 90, 3), sinks=True,
        causal=(True, False, False, True, False),
    ),
    "flags and more queries than keys": replace(
        _HALF, queries=(9, 40, 9, 0), keys=(4, 33, 4, 8), causal=(True, False, False, True)
    ),
    "flags and a window": replace(
        _PAGED, queries=(50, 40, 3), keys=(90, 80, 60), window=(20, 7), causal=(True, False, False)
    ),
    "flags and a window to the left": replace(
        _HALF, queries=(50, 40, 3), keys=(90, 80, 60), window=(20, -1), causal=(False, True, False)
    ),
    "flags, sinks, ALiBi and softcap": replace(
        _PAGED, queries=(30, 1, 20), keys=(60, 90, 25), sinks=True, alibi=True, softcap=20.0,
        causal=(False, True, True), strided=True,
    ),
    "flags, long decode": replace(_PAGED, queries=(2, 3), keys=(700, 600), causal=(True, False)),
    "flags, deterministic": replace(
        _PAGED, queries=(2, 40, 3), keys=(500, 60, 300), causal=(False, True, True),
        deterministic=True,
    ),
    "flags of no sequence": replace(_HALF, queries=(), keys=(), causal=()),
    "values narrower": replace(_HALF, head_dim=64, value_dim=32),
    "values wider": replace(_HALF, head_dim=32, value_dim=64),
    "deterministic": replace(_PAGED, queries=(1, 40), keys=(500, 60), deterministic=True),
}  # fmt: skip
_CASES |= {
    f"group of {group}": replace(_HALF, queries=(1, 20), heads=2 * group)
    for group in (1, 4, 5, 7, 16)
}
_CASES |= {f"head dim {dim}": replace(_HALF, head_dim=dim) for dim in (40, 80, 96, 128, 192, 256)}
_CASES |= {
    f"{str(dtype).removeprefix('torch.')} cache": replace(
        _PAGED, cache_dtype=dtype, scaled_cache=True
    )
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8)
}
_CASES["flags, float8 cache"] = replace(
    _CASES["flags, paged"], cache_dtype=torch.float8_e4m3fn, scaled_cache=True
)

REQUIRED = MappingProxyType(_CASES)
"""Every case by what it is about."""

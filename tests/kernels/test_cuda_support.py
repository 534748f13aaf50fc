"""What the compiled CUDA library says that it serves; no device is needed."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from mainboard import build_info
from mainboard.kernels import cuda_support, schema
from mainboard.kernels.support import FEATURES, Request

DECODE = Request(
    device="cuda", dtype=torch.bfloat16, head_dim=128, page_size=16, heads=32, kv_heads=8
)


def test_operators_have_the_schemas_of_the_public_ones() -> None:
    """A call can be handed on as it is."""
    for name in cuda_support.OPERATORS:
        own = getattr(torch.ops.mainboard_cuda, name).default._schema
        public = getattr(torch.ops.mainboard, name).default._schema
        assert str(own).removeprefix("mainboard_cuda") == str(public).removeprefix("mainboard")
    assert set(cuda_support.OPERATORS) <= set(schema.SCHEMAS)


@pytest.mark.parametrize("dim", cuda_support.HEAD_DIMS)
@pytest.mark.parametrize("cache", [None, torch.float8_e4m3fn, torch.float8_e5m2])
def test_decode_is_served(dim: int, cache: torch.dtype | None) -> None:
    """Few queries, with every feature and cache."""
    features = frozenset(FEATURES)
    asked = replace(DECODE, head_dim=dim, cache_dtype=cache, features=features)
    assert cuda_support.refuses(asked) == []
    assert cuda_support.refuses(replace(asked, dtype=torch.float16, deterministic=True)) == []


@pytest.mark.parametrize(("dim", "value_dim"), [(64, 64), (72, 72), (192, 128), (256, 256)])
def test_prefill_is_served(dim: int, value_dim: int) -> None:
    """Many queries, dense or paged, with every feature."""
    features = frozenset(FEATURES)
    asked = replace(
        DECODE, queries=512, head_dim=dim, value_dim=value_dim, features=features, page_size=None
    )
    assert cuda_support.refuses(asked) == []
    assert cuda_support.refuses(replace(asked, dtype=torch.float16, page_size=48)) == []


@pytest.mark.parametrize("cache", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("page_size", [None, 16])
def test_prefill_over_fp8_is_served(cache: torch.dtype, page_size: int | None) -> None:
    """Many queries over fp8 keys, in pages or dense."""
    asked = replace(DECODE, queries=512, cache_dtype=cache, page_size=page_size)
    assert cuda_support.refuses(asked) == []
    (why,) = cuda_support.refuses(replace(asked, head_dim=72))
    assert "multiples of 16" in why


def test_deterministic_asks_for_both_kernels() -> None:
    """A batch's short sequences take the kernel that they take alone, so that must be there."""
    asked = replace(DECODE, queries=512, deterministic=True)
    assert cuda_support.refuses(asked) == []
    (why,) = cuda_support.refuses(replace(asked, head_dim=72))
    assert "72 is not one of" in why


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dtype": torch.float32}, "only bfloat16 and float16"),
        ({"head_dim": 100}, "multiples of 8"),
        ({"head_dim": 512}, "up to 256"),
        ({"value_dim": 260}, "multiples of 8"),
    ],
)
def test_prefill_that_is_not_compiled_is_refused(changes: dict[str, object], reason: str) -> None:
    """Each refusal names what is so."""
    (why,) = cuda_support.refuses(replace(DECODE, queries=512, **changes))  # type: ignore[arg-type]
    assert reason in why


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dtype": torch.float32}, "only bfloat16 and float16"),
        ({"head_dim": 72}, "72 is not one of"),
        ({"value_dim": 64}, "values of 64"),
        ({"page_size": None, "cache_dtype": torch.float8_e4m3fn}, "from pages only"),
        ({"operator": "fold"}, "has no fold"),
    ],
)
def test_what_is_not_compiled_is_refused_with_the_reason(
    changes: dict[str, object], reason: str
) -> None:
    """Each refusal names what is so."""
    (why,) = cuda_support.refuses(replace(DECODE, **changes))  # type: ignore[arg-type]
    assert reason in why


LATENT = Request(
    operator="mla_decode", device="cuda", dtype=torch.bfloat16, cache_dtype=torch.bfloat16,
    head_dim=576, value_dim=512, page_size=64, heads=128,
)  # fmt: skip


@pytest.mark.parametrize("changes", [{}, {"page_size": 48}, {"queries": 3}, {"heads": 5}])
def test_latent_attention_is_served(changes: dict[str, object]) -> None:
    """Any heads, queries and pages, in both 16-bit formats."""
    asked = replace(LATENT, **changes)  # type: ignore[arg-type]
    assert cuda_support.refuses(asked) == []
    half = replace(asked, dtype=torch.float16, cache_dtype=torch.float16, deterministic=True)
    assert cuda_support.refuses(half) == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dtype": torch.float32}, "only bfloat16 and float16"),
        ({"cache_dtype": torch.float8_e4m3fn}, "another dtype"),
        ({"head_dim": 320, "value_dim": 256}, "320 and 256 columns"),
        ({"queries": 64, "deterministic": True}, "the same bits in every batch"),
    ],
)
def test_latent_attention_that_is_not_compiled_is_refused(
    changes: dict[str, object], reason: str
) -> None:
    """Each refusal names what is so."""
    (why,) = cuda_support.refuses(replace(LATENT, **changes))  # type: ignore[arg-type]
    assert reason in why


def test_the_library_loads_where_torch_has_no_cuda() -> None:
    """It was linked to no CUDA library of torch's, so that any torch of its ABI takes it."""
    info = build_info.library("cuda")
    if info is None:
        pytest.skip("the CUDA kernels are not built here")
    program = (
        "import torch\n"
        "from mainboard.kernels import cuda_support\n"
        f"torch.ops.load_library({str(info.path)!r})\n"
        "has = torch._C._dispatch_has_kernel_for_dispatch_key\n"
        "print(all(has(f'mainboard_cuda::{n}', 'CUDA') for n in cuda_support.OPERATORS))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, check=False
    )
    assert ran.stdout == "True\n", ran.stderr

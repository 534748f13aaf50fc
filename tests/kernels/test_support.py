"""The predicate that says which kernel serves what, and the backend that asks it."""

import runpy
from pathlib import Path

import pytest
import torch

from mainboard.errors import UnsupportedConfigurationError
from mainboard.kernels.backends.cpu import CpuAttentionBackend
from mainboard.kernels.matrix import CASES, matrix
from mainboard.kernels.support import Request, choose, implementations

DOCS = Path(__file__).parents[2] / "docs"


def test_compiled_serves_the_cpu() -> None:
    """On the CPU the compiled kernel is chosen and nothing speaks against it."""
    choice = choose(Request(features=frozenset({"softcap", "sinks"}), page_size=48))
    assert choice.implementation.name == "compiled CPU"
    assert choice.rejected == {}


def test_another_device_gets_the_reference_with_the_reason() -> None:
    """Where no compiled kernel runs, the reference does, and the reason is kept."""
    choice = choose(Request(device="meta"))
    assert choice.implementation.name == "PyTorch reference"
    assert choice.rejected["compiled CPU"] == ["runs on cpu, not on meta"]
    assert choice.rejected["Triton"] == ["runs on cuda, not on meta"]


def test_nothing_serves_and_every_reason_is_given() -> None:
    """The error lists each implementation's reasons."""
    request = Request(dtype=torch.float64, page_size=20, features=frozenset({"magic"}))
    with pytest.raises(UnsupportedConfigurationError) as caught:
        choose(request)
    assert {reason.partition(":")[0] for reason in caught.value.reasons} == {
        implementation.name for implementation in implementations()
    }
    for text in ("dtype float64 is not served", "page size 20 is not a", "magic is not a feature"):
        assert text in str(caught.value)


def test_matrix_has_a_row_for_every_case() -> None:
    """The support matrix names an implementation in every cell."""
    rows = matrix("cpu")
    assert len(rows) == len(CASES)
    assert {row["operator"] for row in rows} == {
        "attention",
        "reshape_and_cache",
        "merge_attention_states",
        "copy_blocks",
        "swap_blocks",
        "mla_decode",
        "concat_and_cache_mla",
    }
    for row in rows:
        serves = "PyTorch reference" if "fnuz" in row["case"] else "compiled CPU"
        assert row["float32"] == row["bfloat16"] == serves


def test_the_page_of_support_is_current() -> None:
    """`python docs/support.py` would change nothing."""
    written = runpy.run_path(str(DOCS / "support.py"))["page"]()
    assert written == (DOCS / "support.md").read_text()


def test_backend_gives_reasons() -> None:
    """The CPU backend validates through the same predicate."""
    assert CpuAttentionBackend.validate_configuration(80, torch.bfloat16, None, 32) == []
    reasons = CpuAttentionBackend.validate_configuration(80, torch.bfloat16, torch.half, 30)
    assert any("page size 30" in reason for reason in reasons)
    assert any("float16 cache under bfloat16" in reason for reason in reasons)


def test_backend_layout_keeps_a_heads_keys_together() -> None:
    """In the backend's layout the keys of one head and page are one run of memory."""
    kv = torch.empty(CpuAttentionBackend.get_kv_cache_shape(4, 32, 2, 64))
    keys, values = CpuAttentionBackend.split_kv_cache(kv)
    assert keys.shape == values.shape == (4, 32, 2, 64)
    assert keys[1, :, 1].is_contiguous()
    assert keys.data_ptr() == kv.data_ptr()

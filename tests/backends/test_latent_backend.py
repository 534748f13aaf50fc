"""The backend for latent attention: who names it, what it refuses, and what a layer gives."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mainboard.errors import UnsupportedConfigurationError
from mainboard.kernels import reference
from mainboard.kernels.backends.interface import CommonAttentionMetadata
from mainboard.kernels.backends.latent import LatentAttentionBackend, LatentAttentionImpl
from mainboard.kernels.backends.operators import cache_dtype
from mainboard.kernels.backends.selection import AttentionSelectorConfig, select_attention_backend
from mainboard.platforms.cpu import CpuPlatform
from mainboard.platforms.cuda import CudaPlatform
from mainboard.platforms.interface import Platform
from mainboard.platforms.recording import Replay
from mainboard.platforms.rocm import RocmPlatform

LATENT, ROTARY, HEADS, PAGE = 512, 64, 3, 16
CONFIG = AttentionSelectorConfig(LATENT + ROTARY, torch.bfloat16, "auto", 64, use_mla=True)
MACHINES = Path(__file__).parents[1] / "platforms" / "machines"
QUERIES, KEYS = (3, 1), (19, 40)
SLOTS = [[7 * PAGE + i for i in range(PAGE)] + [2 * PAGE + i for i in range(3)], []]
SLOTS[1] = [page * PAGE + i for page in (5, 0, 3) for i in range(PAGE)][:40]


@pytest.fixture
def mi300x(monkeypatch: pytest.MonkeyPatch) -> RocmPlatform:
    """AMD's platform on a recorded machine with two MI300X."""
    monkeypatch.delenv("MAINBOARD_ATTENTION_BACKEND", raising=False)
    machine = Replay(json.loads((MACHINES / "mi300x-two.json").read_text()))
    monkeypatch.setattr(RocmPlatform, "_machine", classmethod(lambda cls: machine))
    return RocmPlatform()


@pytest.mark.parametrize("platform", [CpuPlatform, CudaPlatform, RocmPlatform])
def test_every_platform_names_it_for_latent_attention(platform: type[Platform]) -> None:
    """A path for latent attention, none for sparse, and the usual one otherwise."""
    name = platform.get_attn_backend_cls(None, CONFIG)
    assert name == "mainboard.kernels.backends.latent.LatentAttentionBackend"
    assert platform.get_attn_backend_cls(None, CONFIG._replace(use_sparse=True)) == ""
    assert "Latent" not in platform.get_attn_backend_cls(None, CONFIG._replace(use_mla=False))


def test_it_is_chosen_on_amd_devices(mi300x: RocmPlatform) -> None:
    """On a recorded machine it serves latent attention, and others say why they do not."""
    selection = select_attention_backend(CONFIG, num_heads=128, platform=mi300x)
    assert selection.backend is LatentAttentionBackend
    others = {each.name: each.reasons for each in selection.candidates if each.state == "refused"}
    assert others == {"MAINBOARD": ("latent attention is not served",)}
    usual = select_attention_backend(CONFIG._replace(use_mla=False, head_size=128), platform=mi300x)
    assert usual.name == "MAINBOARD"


def test_fp8_is_the_kind_that_the_device_has(
    mi300x: RocmPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache called `fp8` is of the platform's kind; a kind that is named is that one."""
    monkeypatch.setattr("mainboard.platforms.current_platform", mi300x)
    assert cache_dtype("fp8") is torch.float8_e4m3fnuz
    assert cache_dtype("fp8_e4m3") is torch.float8_e4m3fn
    config = CONFIG._replace(kv_cache_dtype="fp8")
    assert LatentAttentionBackend.validate_configuration(**config._asdict()) == []
    monkeypatch.setattr("mainboard.platforms.current_platform", CpuPlatform())
    assert cache_dtype("fp8") is torch.float8_e4m3fn


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"use_mla": False}, "attention that is not latent is not served"),
        ({"use_sparse": True}, "sparse attention is not served"),
        ({"has_sink": True}, "a sink is not served"),
        ({"use_per_head_quant_scales": True}, "a scale for each head is not served"),
        ({"head_size": 64}, "head size 64 is not served"),
        ({"kv_cache_dtype": "int4"}, "cache dtype int4 is not served"),
        ({"attn_type": "encoder"}, "encoder attention is not served"),
        ({"block_size": 17}, "page size 17 is not a multiple of 16"),
        ({"dtype": torch.float64}, "dtype float64 is not served"),
    ],
)
def test_what_it_cannot_serve_it_says(change: dict[str, Any], reason: str) -> None:
    """Each refusal has its reason; the plain configuration has none."""
    assert LatentAttentionBackend.validate_configuration(**CONFIG._asdict()) == []
    found = LatentAttentionBackend.validate_configuration(**CONFIG._replace(**change)._asdict())
    assert any(reason in each for each in found), found


def test_options_that_latent_attention_has_not_are_refused() -> None:
    """An option on scores, or more than one row of keys, is refused by name; ranks are not."""
    impl = LatentAttentionImpl
    with pytest.raises(UnsupportedConfigurationError, match="with ALiBi and a window was asked"):
        impl(HEADS, 576, 0.1, alibi_slopes=[1.0], sliding_window=9)
    with pytest.raises(UnsupportedConfigurationError, match="with 2 key heads was asked"):
        impl(HEADS, 576, 0.1, 2)
    ranks: dict[str, Any] = {"kv_lora_rank": 256, "q_lora_rank": None, "v_head_dim": 128}
    assert impl(HEADS, 320, 0.1, 1, None, None, "auto", 0.0, **ranks).latent == 256
    assert impl(HEADS, 576, 0.1).latent == 512


def drawn(dtype: torch.dtype, stored: torch.dtype) -> SimpleNamespace:
    """A batch in the middle of its sequences, its cache, and the result in float64."""
    torch.manual_seed(5)
    shape = LatentAttentionBackend.get_kv_cache_shape(8, PAGE, 1, LATENT + ROTARY)
    cache = torch.full(shape, float("nan")).to(stored)
    rows = [torch.randn(n, LATENT + ROTARY).to(dtype) for n in KEYS]
    new, slots = [], []
    for mine, at, queries in zip(rows, SLOTS, QUERIES, strict=True):
        old = len(at) - queries
        cache.view(-1, LATENT + ROTARY)[at[:old]] = (mine[:old].float() / 0.5).to(stored)
        new.append(mine[old:])
        slots += at[old:]
    offsets = torch.tensor([0, *QUERIES]).cumsum(0).int()
    batch = CommonAttentionMetadata(
        query_start_loc=offsets,
        query_start_loc_cpu=offsets,
        seq_lens=torch.tensor(KEYS, dtype=torch.int32),
        num_reqs=2,
        num_actual_tokens=sum(QUERIES),
        max_query_len=max(QUERIES),
        max_seq_len=max(KEYS),
        block_table_tensor=torch.tensor([[7, 2, -9], [5, 0, 3]], dtype=torch.int32),
        slot_mapping=torch.tensor([*slots, -1]),
    )
    q = torch.randn(sum(QUERIES) + 1, HEADS, LATENT + ROTARY).to(dtype)
    return SimpleNamespace(q=q, cache=cache, new=torch.cat([*new, rows[0][:1]]), batch=batch)


def expected(given: SimpleNamespace, cache: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The reference in float64, on a cache that has the new rows."""
    tokens, batch = sum(QUERIES), given.batch
    out = torch.empty(tokens, HEADS, LATENT, dtype=torch.float64)
    lse = torch.empty(HEADS, tokens, dtype=torch.float64)
    reference.mla_decode(
        given.q[:tokens], cache, out, lse, batch.query_start_loc, batch.seq_lens,
        batch.block_table_tensor, max(QUERIES), max(KEYS), 0.07, True, torch.tensor([0.5]), False,
        precision=torch.float64,
    )  # fmt: skip
    return out, lse


def check_layer(dtype: torch.dtype, stored: torch.dtype) -> None:
    """A layer writes the new rows and attends; padding behind the batch is left alone."""
    given = drawn(dtype, stored)
    name = {torch.float8_e4m3fn: "fp8_e4m3", torch.float8_e5m2: "fp8_e5m2"}.get(stored, "auto")
    impl: Any = LatentAttentionBackend.get_impl_cls()(HEADS, LATENT + ROTARY, 0.07, 1,
                                                      kv_cache_dtype=name)  # fmt: skip
    builder = LatentAttentionBackend.get_builder_cls()(None, ["layer"], None, given.q.device)
    batch = builder.build(0, given.batch)
    layer = SimpleNamespace(_k_scale=torch.tensor(0.5), _v_scale=torch.tensor(0.5))
    bytes_ = given.cache.view(torch.uint8) if name != "auto" else given.cache
    found = impl.forward(
        layer, given.q.flatten(1), given.new[:, :LATENT], given.new[:, None, LATENT:], bytes_,
        batch, torch.zeros(given.q.shape[0], HEADS * LATENT, dtype=dtype),
    )  # fmt: skip
    slots = given.batch.slot_mapping[:-1]
    written = given.cache.view(-1, LATENT + ROTARY)[slots].float() * 0.5
    torch.testing.assert_close(written, given.new[:-1].float(), rtol=0.2, atol=0.02)
    want, want_lse = expected(given, given.cache)
    out = found[:-1].view(-1, HEADS, LATENT).double()
    assert (out - want).norm() <= {torch.float32: 1e-5, torch.float16: 1e-3}[dtype] * want.norm()
    assert not found[-1].any()
    apart = given.q[..., :LATENT], given.q[..., LATENT:]
    for q in (given.q, apart):
        again, lse = impl.forward_mqa(q, bytes_, batch, layer)
        torch.testing.assert_close(again.flatten(1), found[:-1])
        torch.testing.assert_close(lse.t().double(), want_lse, rtol=1e-4, atol=1e-4)


def test_causal_flags_are_refused() -> None:
    """Latent attention takes one answer for the whole batch, and says so."""
    given = drawn(torch.float32, torch.float32)
    impl = LatentAttentionImpl(HEADS, LATENT + ROTARY, 0.07)
    flagged = given.batch.replace(causal=torch.tensor([True, False]))
    batch = LatentAttentionBackend.get_builder_cls()(None, [], None, given.q.device)
    with pytest.raises(UnsupportedConfigurationError, match="so split it in two"):
        impl.forward_mqa(given.q, given.cache, batch.build(0, flagged), SimpleNamespace())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("stored", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_layer_gives_what_the_reference_gives(dtype: torch.dtype, stored: torch.dtype) -> None:
    """With caches of 8-bit floats, which engines allocate as bytes."""
    check_layer(dtype, stored)


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_a_layer_on_the_triton_kernels(tmp_path: Path) -> None:
    """The same layer on the kernels that AMD's devices run, in Triton's interpreter."""
    code = f"""
import importlib.util, torch
spec = importlib.util.spec_from_file_location("latent", {str(Path(__file__))!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module.check_layer(torch.float16, torch.float8_e4m3fn)
"""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("MAINBOARD_")}
    environ |= {"TRITON_INTERPRET": "1", "MAINBOARD_KERNELS": "triton"}
    done = subprocess.run([sys.executable, "-c", code], check=False, env=environ, cwd=tmp_path,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]

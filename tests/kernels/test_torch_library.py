"""The operators as PyTorch sees them: schemas, fake kernels, torch.compile, reference."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mainboard.kernels import attention, merge_attention_states, reference, reshape_and_cache
from mainboard.kernels.schema import SCHEMAS
from mainboard.testing.attention_cases import AttentionCase, assert_close, draw_case

OPS = torch.ops.mainboard


def attention_arguments(case: AttentionCase) -> tuple[object, ...]:
    """The raw operator's arguments for a case."""
    given = case.inputs()
    o = given.options
    out = given.q.new_zeros(given.q.shape[0], case.heads, case.values)
    lse = torch.zeros(case.heads, given.q.shape[0])
    flags = (o["causal"],) if isinstance(case.causal, tuple) else ()
    return (
        given.q, given.k, given.v, out, lse, o["cu_seqlens_q"], o.get("cu_seqlens_k"),
        o.get("seqused_k"), o.get("block_table"), o["max_seqlen_q"], o["max_seqlen_k"],
        case.head_dim**-0.5, case.causal is True, *case.window, case.softcap, o.get("alibi_slopes"),
        o.get("sinks"), o.get("k_scale"), o.get("v_scale"), case.deterministic, *flags,
    )  # fmt: skip


def cache_arguments() -> tuple[object, ...]:
    """The raw operator's arguments."""
    key, value = torch.randn(2, 5, 2, 64).unbind(0)
    caches = [torch.zeros(3, 16, 2, 64) for _ in range(2)]
    return key, value, *caches, torch.arange(5), None, None


def merge_arguments() -> tuple[object, ...]:
    """The raw operator's arguments."""
    a, b = torch.randn(5, 2, 64), torch.randn(5, 2, 64)
    return torch.empty_like(a), torch.empty(2, 5), a, torch.randn(2, 5), b, torch.randn(2, 5)


def latent_arguments() -> tuple[object, ...]:
    """The raw arguments of mla_decode."""
    table, offsets = torch.tensor([[2, 0]]).int(), torch.tensor([0, 3]).int()
    return (
        torch.randn(3, 4, 48), torch.randn(3, 16, 48), torch.zeros(3, 4, 32), torch.zeros(4, 3),
        offsets, torch.tensor([20]).int(), table, 3, 20, 0.2, True, None, False,
    )  # fmt: skip


def latent_cache_arguments() -> tuple[object, ...]:
    """The raw arguments of concat_and_cache_mla."""
    return torch.randn(5, 32), torch.randn(5, 16), torch.zeros(3, 16, 48), torch.arange(5), None


def copy_arguments() -> tuple[object, ...]:
    """The raw arguments of copy_blocks."""
    return [torch.randn(4, 16, 2, 8), torch.randn(4, 16, 3)], torch.tensor([[0, 1], [2, 3]])


def swap_arguments() -> tuple[object, ...]:
    """The raw arguments of swap_blocks."""
    return torch.randn(4, 16, 2, 8), torch.randn(6, 16, 2, 8), torch.tensor([[0, 5], [2, 3]])


CALLS = {
    "attention dense": ("attention", lambda: attention_arguments(AttentionCase((3, 1), (9, 30)))),
    "attention paged": (
        "attention",
        lambda: attention_arguments(AttentionCase((3, 1), (9, 30), page_size=16, sinks=True)),
    ),
    "attention flags": (
        "attention",
        lambda: attention_arguments(AttentionCase((3, 1), (9, 30), causal=(False, True))),
    ),
    "reshape_and_cache": ("reshape_and_cache", cache_arguments),
    "merge_attention_states": ("merge_attention_states", merge_arguments),
    "mla_decode": ("mla_decode", latent_arguments),
    "concat_and_cache_mla": ("concat_and_cache_mla", latent_cache_arguments),
    "copy_blocks": ("copy_blocks", copy_arguments),
    "swap_blocks": ("swap_blocks", swap_arguments),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", CALLS)
def test_opcheck(name: str) -> None:
    """PyTorch's own checks pass: schema, mutation marks, fake kernel, autograd, AOT dispatch."""
    operator, arguments = CALLS[name]
    torch.library.opcheck(getattr(OPS, operator).default, arguments())


def dispatched(name: str, key: str) -> bool:
    """Whether the dispatcher has a kernel for a key itself."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"mainboard::{name}", key)


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_device_has_the_reference(name: str) -> None:
    """The dispatcher has the reference of every operator, for devices with nothing better."""
    assert dispatched(name, "CompositeExplicitAutograd")


@pytest.mark.parametrize(
    "name",
    ["attention", "reshape_and_cache", "merge_attention_states", "copy_blocks", "swap_blocks"],
)
def test_cpu_runs_the_compiled_kernel(name: str) -> None:
    """The dispatcher has a CPU kernel of its own beside the reference."""
    assert dispatched(name, "CPU")


IN_PYTHON = """
import torch
from mainboard.kernels import attention
from mainboard.testing.attention_cases import AttentionCase

seen = []
library = torch.library.Library("mainboard", "IMPL")
library.impl("attention", lambda *given: seen.append(len(given)), "Meta")
for causal in (True, (True, False)):
    given = AttentionCase((3, 1), (9, 30), causal=causal).inputs("meta")
    attention(given.q, given.k, given.v, **given.options)
print(*seen)
"""


@pytest.mark.multiprocess
def test_an_implementation_in_python_gets_no_flags_where_there_are_none(tmp_path: Path) -> None:
    """PyTorch leaves the last argument out, so those written before it existed go on serving."""
    command = [sys.executable, "-c", IN_PYTHON]
    done = subprocess.run(command, check=True, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == ["21", "22"]


@pytest.mark.parametrize("seed", range(40))
def test_reference_agrees_with_float64(seed: int) -> None:
    """The float32 reference, what other devices run, agrees with float64."""
    case = draw_case(seed)
    arguments = list(attention_arguments(case))
    reference.attention(*arguments)
    expected, expected_lse = case.expected(case.inputs())
    assert_close(arguments[3], expected, case)
    assert_close(arguments[4], expected_lse, case, "lse")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("causal", [True, (False, True)])
@pytest.mark.parametrize("page_size", [None, 16])
def test_compiles_without_a_break(page_size: int | None, causal: bool | tuple[bool, ...]) -> None:
    """`torch.compile(fullgraph=True)` takes the public calls and gives the same."""
    case = AttentionCase((3, 1), (9, 30), page_size=page_size, causal=causal)
    given = case.inputs()
    a_lse = torch.randn(case.heads, 4)

    def step(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        out, lse = attention(q * 2, k, v, return_lse=True, **given.options)
        return merge_attention_states(out, lse, q, a_lse)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(given.q, given.k, given.v), step(given.q, given.k, given.v))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_cache_writes_are_kept() -> None:
    """Under torch.compile the caches passed in are the ones written."""
    key, value, k_cache, v_cache, slots, _, _ = cache_arguments()
    compiled = torch.compile(reshape_and_cache, fullgraph=True, backend="aot_eager")
    compiled(key, value, k_cache, v_cache, slots)
    assert torch.equal(k_cache[0, :5], key) and torch.equal(v_cache[0, :5], value)

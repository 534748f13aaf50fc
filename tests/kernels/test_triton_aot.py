"""The Triton kernels compiled for every architecture with no device present, and what they take."""

import itertools
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed"),
]

ARCHITECTURES = (
    "sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx90a", "gfx942", "gfx950",
    "gfx1100", "gfx1201",
)  # fmt: skip
# What a program may have at most, in bytes.
SHARED = dict.fromkeys(ARCHITECTURES, 65536) | {
    "sm_80": 166912, "sm_86": 101376, "sm_89": 101376, "sm_90": 232448, "sm_100": 232448,
    "sm_120": 101376, "gfx950": 163840,
}  # fmt: skip
TABLE = Path(__file__).parents[2] / "benchmarks" / "results" / "triton_aot.md"


def recorded() -> dict[tuple[str, str], tuple[str, int, int, int]]:
    """The published table: tile, registers, shared memory and what is spilled, for each kernel."""
    row = r"^\| ((?:sm|gfx)\w+) \| ([^|]+) \| ([^|]+) \| (\d+) \| (\d+) \| (\d+) \|$"
    rows = re.findall(row, TABLE.read_text(), re.MULTILINE)
    return {
        (architecture, case): (tile, int(registers), int(shared), int(spilled))
        for architecture, case, tile, registers, shared, spilled in rows
    }


def handed_out(architecture: str, registers: int) -> int:
    """What a thread gets for so many registers: NVIDIA's devices hand them out by eights."""
    return -(-registers // 8) * 8 if architecture.startswith("sm_") else registers


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_default_tiles_spill_nothing(architecture: str) -> None:
    """Every kernel compiles for the architecture, and all its values stay in registers.

    With the Triton that the table was made with, it takes what the table says. The registers are
    those that it is handed out: the same versions chose 252 on one machine and 255 on another.
    """
    import triton

    from mainboard.kernels.triton.aot import CASES, compile_case

    published = recorded()
    same = f"Triton {triton.__version__}" in TABLE.read_text()
    for case in CASES:
        found = compile_case(case, architecture)
        assert found.spilled == 0, found
        assert 0 < found.registers <= 512, found
        assert 0 <= found.shared <= SHARED[architecture], found
        tile, registers, *memory = published[architecture, case]
        recorded_takes = tile, handed_out(architecture, registers), *memory
        takes = found.tile, handed_out(architecture, found.registers), found.shared, found.spilled
        assert not same or takes == recorded_takes, found


def test_recorded_table_has_every_kernel_as_it_is_and_no_spill() -> None:
    """The published table has each kernel for each architecture with today's tile; none spills."""
    from mainboard.kernels.triton.aot import CASES, tile_of

    found = recorded()
    expected = itertools.product(ARCHITECTURES, CASES)
    assert {at: row[0] for at, row in found.items()} == {
        (name, case): tile_of(case, name) for name, case in expected
    }
    assert {spilled for *_, spilled in found.values()} == {0}
    assert all(found[at][2] <= SHARED[at[0]] for at in found)


def test_every_architecture_has_tiles_for_all_work() -> None:
    """No table lacks a kind of work or a dimension, and an older relative serves what has none."""
    from mainboard.kernels.triton import tiles
    from mainboard.kernels.triton.tune import WORK

    for name in (*tiles.ARCHITECTURES, "sm_88", "sm_121", "gfx940", "gfx1151"):
        for kind, pad in WORK:
            assert tiles.tile(name, kind, pad).block_m >= 16
    for name in ("sm_70", "gfx906", "gfx908"):
        assert tiles.family(name) is None


def test_a_compiled_graph_gets_tiles_without_options() -> None:
    """PyTorch passes a kernel in a graph no options but warps and stages: such tiles have none."""
    from mainboard.kernels.triton import tiles
    from mainboard.kernels.triton.tune import WORK

    assert tiles.tile("sm_90", "prefill", 128).options
    for name, (kind, pad) in itertools.product(tiles.ARCHITECTURES, WORK):
        assert not tiles.tile(name, kind, pad, traced=True).options


def test_compile_sees_through_the_operator() -> None:
    """Under torch.compile the operator's kernels are in the graph, not a call of the operator."""
    import torch
    from torch._dynamo.backends.common import aot_autograd

    from mainboard.kernels.triton import plan, traced

    seen: list[str] = []

    class Recorded(Exception):
        """The graph is known; there is no device to run it."""

    def record(graph: torch.fx.GraphModule, example: list[object]) -> object:
        seen.extend(type(node.target).__name__ for node in graph.graph.nodes)
        raise Recorded

    def step(
        q: torch.Tensor, k: torch.Tensor, lengths: torch.Tensor, table: torch.Tensor
    ) -> object:
        out = torch.empty_like(q)
        begins = torch.arange(5, dtype=torch.int32)
        torch.ops.mainboard_triton.attention(
            q, k, k, out, None, begins, None, lengths, table, 1, 4096, 0.1, True, -1, -1, 0.0,
            None, None, None, None, False,
        )  # fmt: skip
        return out * 2

    assert "attention" in traced.OPERATORS
    arguments = (
        torch.zeros(4, 8, 64).half(), torch.zeros(1024, 16, 2, 64).half(),
        torch.full((4,), 4096).int(), torch.arange(1024).int().view(4, 256),
    )  # fmt: skip
    compiled = torch.compile(step, backend=aot_autograd(fw_compiler=record), fullgraph=True)
    with plan.pretending("sm_90"), pytest.raises(Exception, match="Recorded"):
        compiled(*arguments)
    # Attention over shares of the keys, and their joining.
    assert seen.count("TritonKernelWrapperFunctional") == 2

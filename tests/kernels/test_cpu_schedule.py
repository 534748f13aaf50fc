"""How the CPU kernels share out their work, for up to 64 threads, of which this machine needs none.

The schedule is compiled as it is. Its model: an item costs its keys times its rows, of which there
are at least as many as take as long as reading a key, which must be done anyway; a thread takes the
next item when it is free. Half of the threads read as fast as all of them.
"""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HARNESS = Path(__file__).parent / "cpu_schedule"
THREADS = (1, 2, 3, 8, 16, 48, 64)
# The most rows of an item, and how many take as long as reading: of vectors, of tiles.
KERNELS = ((384, 8), (1024, 64))
BATCHES = {
    "one long sequence": [(1, 131072)],
    "one prefill": [(2048, 2048)],
    "a long prefill": [(16384, 16384)],
    "many short decodes": [(1, 300 + 7 * i) for i in range(256)],
    "decodes of all lengths": [(1, 64 << (i % 11)) for i in range(64)],
    "a prefill among decodes": [(512, 2048)] + [(1, 4096)] * 15,
    "a chunk of a long sequence": [(512, 65536)],
    "uneven prefills": [(300, 300), (700, 700), (1500, 1500), (2500, 2500)],
}


@dataclass(frozen=True)
class Shares:
    """What the harness found for one batch."""

    items: int
    joins: int
    worst_over_mean: float
    time_over_least: float
    uncovered: int
    allocations: int


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The schedule and the harness, compiled."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    built = tmp_path_factory.mktemp("schedule") / "share_work"
    sources = [HARNESS / "share_work.cpp", ROOT / "csrc/cpu/schedule.cpp"]
    words: list[str | Path] = [compiler, "-std=c++17", "-O1", f"-I{ROOT}", "-o", built]
    subprocess.run([*words, *sources], check=True)
    return built


def shares(
    program: Path, batch: list[tuple[int, int]], threads: int, kernels: tuple[int, int]
) -> Shares:
    """How one batch is shared."""
    numbers = [threads, 32, 8, *kernels, len(batch), *(n for pair in batch for n in pair)]
    text = " ".join(map(str, numbers))
    ran = subprocess.run([program], input=text, capture_output=True, text=True, check=True)
    items, joins, worst, time, uncovered, allocations = ran.stdout.split()
    return Shares(
        int(items), int(joins), float(worst), float(time), int(uncovered), int(allocations)
    )


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("name", BATCHES)
def test_threads_end_together(
    program: Path, name: str, threads: int, kernels: tuple[int, int]
) -> None:
    """The busiest thread has at most a fifth more than the mean, and nothing is done twice.

    Where half of the threads saturate the memory, all of it takes an eighth more than it must: what
    is bound by memory and what is bound by arithmetic go on side by side.
    """
    found = shares(program, BATCHES[name], threads, kernels)
    assert found.uncovered == 0
    assert found.worst_over_mean < 1.2, found
    assert found.time_over_least < 1.125, found


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("threads", [1, 2, 8])
def test_one_short_sequence_is_an_item_a_thread(
    program: Path, threads: int, kernels: tuple[int, int]
) -> None:
    """Its eight key heads are shared out, and nothing is joined."""
    found = shares(program, [(1, 1024)], threads, kernels)
    assert (found.items, found.joins) == (threads, 0)


@pytest.mark.parametrize("name", BATCHES)
def test_planning_again_allocates_nothing(program: Path, name: str) -> None:
    """A plan keeps its memory, so that a steady state asks the system for none."""
    assert shares(program, BATCHES[name], 8, KERNELS[1]).allocations == 0

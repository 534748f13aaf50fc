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
# The most rows of an item, how many take as long as reading, and the keys of a chunk that items may
# share: of vectors, of tiles.
VECTORS, TILES = (384, 8, 0), (1024, 64, 512)
KERNELS = (VECTORS, TILES)
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
# On tiles and for as many threads as key heads, smaller items would pack their keys more often than
# threads that end together are worth. The busiest over the mean, and the time over the least.
COARSE = {"a prefill among decodes": (1.3, 4 / 3), "a chunk of a long sequence": (1.2, 1.15)}


@dataclass(frozen=True)
class Shares:
    """What the harness found for one batch."""

    items: int
    joins: int
    worst_over_mean: float
    time_over_least: float
    uncovered: int
    allocations: int
    chunks: int
    confused_chunks: int
    items_alone: int
    heads_under_way: int


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
    program: Path,
    batch: list[tuple[int, int]],
    threads: int,
    kernels: tuple[int, int, int],
    left: int = 1 << 40,
) -> Shares:
    """How one batch is shared; queries see so many keys before their own."""
    numbers = [threads, 32, 8, *kernels, left, len(batch), *(n for pair in batch for n in pair)]
    text = " ".join(map(str, numbers))
    ran = subprocess.run([program], input=text, capture_output=True, text=True, check=True)
    items, joins, worst, time, *counts = ran.stdout.split()
    return Shares(int(items), int(joins), float(worst), float(time), *map(int, counts))


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("name", BATCHES)
def test_threads_end_together(
    program: Path, name: str, threads: int, kernels: tuple[int, int, int]
) -> None:
    """The busiest thread has at most a fifth more than the mean, and nothing is done twice.

    Where half of the threads saturate the memory, all of it takes an eighth more than it must: what
    is bound by memory and what is bound by arithmetic go on side by side. `COARSE` names what is less
    even.
    """
    found = shares(program, BATCHES[name], threads, kernels)
    assert found.uncovered == 0
    coarse = COARSE if kernels is TILES and threads >= 8 else {}
    worst, time = coarse.get(name, (1.2, 1.125))
    assert found.worst_over_mean < worst, found
    assert found.time_over_least < time, found


@pytest.mark.parametrize(("threads", "items"), [(2, 16), (8, 32), (16, 64), (64, 128)])
def test_many_threads_cut_queries_before_keys(program: Path, threads: int, items: int) -> None:
    """A short prompt becomes smaller blocks of queries, of which nothing has to be joined.

    A short chunk of a long sequence has ranges of keys instead: its blocks are small already.
    """
    prompt = shares(program, [(512, 512)], threads, TILES)
    assert (prompt.items, prompt.joins, prompt.uncovered) == (items, 0, 0)
    assert prompt.worst_over_mean < 1.05
    chunk = shares(program, [(128, 8320)], threads, TILES)
    assert (chunk.joins > 0, chunk.uncovered) == (threads > 2, 0)
    assert chunk.worst_over_mean < 1.1
    # Its last block is short, so that it sees fewer keys than the others.
    window = shares(program, [(8200, 8200)], threads, TILES, left=1023)
    assert (window.joins, window.uncovered) == (0, 0)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("threads", [1, 2, 8])
def test_one_short_sequence_is_an_item_a_thread(
    program: Path, threads: int, kernels: tuple[int, int, int]
) -> None:
    """Its eight key heads are shared out, and nothing is joined."""
    found = shares(program, [(1, 1024)], threads, kernels)
    assert (found.items, found.joins) == (threads, 0)


@pytest.mark.parametrize("name", BATCHES)
def test_planning_again_allocates_nothing(program: Path, name: str) -> None:
    """A plan keeps its memory, so that a steady state asks the system for none."""
    assert shares(program, BATCHES[name], 8, TILES).allocations == 0


@pytest.mark.parametrize("threads", THREADS)
def test_items_share_keys_that_are_read_often(program: Path, threads: int) -> None:
    """Every chunk of a key head that three items read on average, up to 64 MiB in all."""
    found = shares(program, [(2048, 2048)], threads, TILES)
    assert (found.chunks, found.items_alone) == (8 * 4, 0)
    # 64 queries over as many keys as before are read once; 512 over 4,096 twice, or by more and
    # smaller blocks for more threads.
    for batch in ([(64, 2048)], [(1, 4096)] * 15):
        alone = shares(program, batch, threads, TILES)
        assert (alone.chunks, alone.items_alone) == (0, alone.items)
    chunk = shares(program, [(512, 4096)], threads, TILES)
    assert chunk.chunks == (8 * 8 if threads >= 8 else 0)
    mixed = shares(program, [(2048, 2048), (512, 4096), (1024, 2100)], threads, TILES)
    assert mixed.chunks == 8 * (4 + 5 + (8 if threads >= 48 else 0))
    long = shares(program, [(32768, 32768)], threads, TILES)
    assert long.chunks == (64 << 20) // (512 * 512)
    # Of a window only what it shows: from key 96,000 - 4,096 on, in 13 chunks.
    window = shares(program, [(2048, 98048)], threads, TILES, left=4096)
    assert (window.chunks, window.items_alone, window.uncovered) == (8 * 13, 0, 0)
    assert not any(f.confused_chunks for f in (found, mixed, long, window))


def test_vectors_share_nothing(program: Path) -> None:
    """They read keys and values as they are stored."""
    assert shares(program, [(2048, 2048)], 2, VECTORS).chunks == 0


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize(("threads", "heads"), [(1, 1), (2, 2), (3, 5), (8, 8), (64, 8)])
def test_few_key_heads_are_under_way(
    program: Path, threads: int, heads: int, kernels: tuple[int, int, int]
) -> None:
    """Of eight, one for each thread at a time, so that its keys stay near.

    The last turn has those that are too few for another.
    """
    assert shares(program, [(16384, 16384)], threads, kernels).heads_under_way == heads

"""How the CUDA decode kernel shares out its work, run on the host: no device is needed.

The schedule is compiled as it is, for warps of one lane.
"""

import random
import shutil
import subprocess
from collections import defaultdict
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HARNESS = Path(__file__).parent / "cuda_schedule"
ROWS, UNIT_KEYS, MOST_PIECES, LEAST_UNITS = 16, 64, 16, 8
UNBOUNDED = 1 << 30


@dataclass(frozen=True)
class Batch:
    """What the schedule depends on."""

    grid: int
    kv_heads: int
    group: int
    left: int
    fixed: bool
    lengths: tuple[tuple[int, int], ...]  # queries and keys
    cluster: int = 0  # log2
    above: int = 0  # sequences with no more rows, and
    up_to: int = UNBOUNDED  # with more than these, are another launch's

    def __str__(self) -> str:
        numbers = [self.grid, self.kv_heads, self.group, self.left, int(self.fixed)]
        numbers += [self.cluster, self.above, self.up_to, len(self.lengths)]
        numbers += [n for pair in self.lengths for n in pair]
        return " ".join(map(str, numbers))

    def units(self, index: int) -> int:
        """Units of each tile of a sequence."""
        queries, keys = self.lengths[index]
        first = max(0, keys - queries - self.left) // 16 * 16
        return max(1, -(-(keys - first) // UNIT_KEYS))


def draw(seed: int) -> Batch:
    """A random batch: even lengths and uneven ones, empty sequences, few blocks and many."""
    r = random.Random(seed)
    longest = r.choice([60, 500, 3000])
    same = r.random() < 0.4
    length = r.randint(0, longest), r.choice([0, 1, 1, 1, 5])
    lengths = [
        (length[1], length[0])
        if same
        else (r.choice([0, 1, 1, 2, 17]), r.randint(0, r.choice([1, longest])))
        for _ in range(r.randint(0, 12))
    ]
    left = r.choice([UNBOUNDED, UNBOUNDED, 0, 100])
    grid, heads, group = r.choice([1, 3, 8, 40]), r.choice([1, 2, 5]), r.choice([1, 4, 7, 16])
    fixed = r.random() < 0.4
    cluster = 0 if fixed else r.choice([0, 1, 2, 3])
    grid = grid >> cluster << cluster or 1 << cluster
    return Batch(grid, heads, group, left, fixed, tuple(lengths), cluster)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The schedule, compiled for the host."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    built = tmp_path_factory.mktemp("schedule") / "print_segments"
    words = [compiler, "-std=c++17", "-O1", f"-I{HARNESS}", f"-I{ROOT}", "-o", built]
    subprocess.run([*words, HARNESS / "print_segments.cpp"], check=True)
    return built


def segments(program: Path, batches: list[Batch]) -> list[list[tuple[int, ...]]]:
    """What every batch's blocks do."""
    text = "\n".join(map(str, batches))
    ran = subprocess.run([program], input=text, capture_output=True, text=True, check=True)
    parts = ran.stdout.split("end\n")[:-1]
    return [[tuple(map(int, line.split())) for line in part.splitlines()] for part in parts]


def assert_whole(batch: Batch, found: list[tuple[int, ...]]) -> None:
    """Every unit of every tile is done once, and the pieces of a tile can be joined."""
    tiles = defaultdict(list)
    counters, slots = {}, set()
    for _, index, head, row, unit, end, units, pieces, piece, slot, counter in found:
        assert units == batch.units(index)
        tile = index, head, row
        if piece >= pieces:
            assert slot == -1, "only a cluster has pieces too many"
            assert unit == end == units
            continue
        tiles[tile].append((unit, end, pieces, piece))
        if pieces > 1 and slot >= 0:
            assert slot not in slots, "two pieces share a slot"
            slots.add(slot)
            assert counters.setdefault(counter, tile) == tile, "two tiles share a counter"
    expected = {
        (index, head, row)
        for index, (queries, _) in enumerate(batch.lengths)
        if batch.above < queries * batch.group <= batch.up_to
        for head in range(batch.kv_heads)
        for row in range(0, queries * batch.group, ROWS)
    }
    assert set(tiles) == expected
    for (index, _, _), parts in tiles.items():
        parts.sort()
        assert [part[3] for part in parts] == list(range(len(parts)))
        assert {part[2] for part in parts} == {len(parts)}
        assert parts[0][0] == 0
        assert parts[-1][1] == batch.units(index)
        assert all(a[1] == b[0] for a, b in pairwise(parts))


def test_every_unit_of_every_tile_is_done_once(program: Path) -> None:
    """Whatever the batch, nothing is left out, done twice or joined with another's."""
    batches = [draw(seed) for seed in range(400)]
    for batch, found in zip(batches, segments(program, batches), strict=True):
        assert_whole(batch, found)


@pytest.mark.parametrize(("above", "up_to"), [(0, 16), (16, 64), (64, UNBOUNDED)])
def test_other_sequences_are_left_to_other_launches(program: Path, above: int, up_to: int) -> None:
    """A launch does its own sequences, as if there were no others."""
    batches = [replace(draw(seed), above=above, up_to=up_to) for seed in range(100)]
    for batch, found in zip(batches, segments(program, batches), strict=True):
        assert_whole(batch, found)


def test_blocks_get_equal_shares(program: Path) -> None:
    """No block has two units more than its share, or eight where its cluster has the tile."""
    batches = [b for b in map(draw, range(400)) if not b.fixed]
    for batch, found in zip(batches, segments(program, batches), strict=True):
        work: dict[int, int] = defaultdict(int)
        for block, _, _, _, unit, end, *_ in found:
            work[block] += end - unit
        share = sum(work.values()) / batch.grid
        clustered = any(s[9] < 0 for s in found)
        assert max(work.values(), default=0) < share + (9 if clustered else 2)


def test_a_cluster_has_one_tile(program: Path) -> None:
    """The pieces of a tile are in the order of its cluster's blocks, and no other tile's are."""
    batches = [b for b in map(draw, range(400)) if b.cluster]
    seen = 0
    for batch, found in zip(batches, segments(program, batches), strict=True):
        if not any(s[9] < 0 for s in found):
            continue
        seen += 1
        assert all(s[8] == s[0] % (1 << batch.cluster) for s in found)
        of_cluster = defaultdict(set)
        for block, *tile in (s[:4] for s in found):
            of_cluster[block >> batch.cluster].add(tuple(tile))
        assert all(len(tiles) == 1 for tiles in of_cluster.values())
    assert seen >= 10


def test_fixed_pieces_depend_on_their_sequence_alone(program: Path) -> None:
    """With `deterministic`, a sequence is cut in the same places whatever else is in the batch."""
    batches = [b for b in map(draw, range(400)) if b.fixed and b.lengths]
    alone = [Batch(7, b.kv_heads, b.group, b.left, True, (b.lengths[-1],)) for b in batches]
    together = segments(program, batches)
    for batch, found, single in zip(batches, together, segments(program, alone), strict=True):
        last = len(batch.lengths) - 1
        cuts = sorted(s[2:9] for s in found if s[1] == last)
        assert cuts == sorted(s[2:9] for s in single)
        assert all(s[7] <= MOST_PIECES for s in found)
        assert all(s[5] - s[4] >= LEAST_UNITS or s[5] == s[6] for s in found)


def test_even_tiles_that_nearly_fit_are_not_cut(program: Path) -> None:
    """64 sequences of 1,024 keys on 264 blocks: 31.03 units each, or two whole tiles of 16."""
    batch = Batch(264, 8, 4, UNBOUNDED, False, ((1, 1024),) * 64)
    (found,) = segments(program, [batch])
    assert {s[7] for s in found} == {1}

"""How the CUDA kernels for decode share out their work, run on the host: no device is needed.

The schedules are compiled as they are, for warps of one lane.
"""

import random
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
HARNESS = Path(__file__).parent / "cuda_schedule"
UNIT_KEYS, MOST_PIECES = 64, 16
UNBOUNDED = 1 << 30


class Segment(NamedTuple):
    """A line of the program's: what a block does of one tile."""

    block: int
    sequence: int
    head: int
    row: int
    unit: int
    end: int
    pieces: int
    piece: int
    slot: int  # -1 in a cluster
    counter: int

    @property
    def tile(self) -> tuple[int, int, int]:
        """Whose part it is."""
        return self.sequence, self.head, self.row


@dataclass(frozen=True)
class Batch(ABC):
    """What a schedule depends on."""

    lengths: tuple[tuple[int, int], ...]  # queries and keys
    fixed: bool

    def words(self, *numbers: int) -> str:
        """The program's input, with the lengths last."""
        flat = [n for pair in self.lengths for n in pair]
        return " ".join(map(str, [type(self).__name__.lower(), *numbers, len(self.lengths), *flat]))

    def units(self, index: int) -> int:
        """Units of each tile of a sequence."""
        return max(1, -(-self.lengths[index][1] // UNIT_KEYS))

    @abstractmethod
    def tiles(self) -> set[tuple[int, int, int]]:
        """All that there are."""

    @abstractmethod
    def alone(self) -> "Batch":
        """The last sequence, with nothing beside it."""


@dataclass(frozen=True)
class Decode(Batch):
    """A call of `attention`."""

    grid: int
    kv_heads: int
    group: int
    left: int = UNBOUNDED
    cluster: int = 0  # log2
    spread_units: int = 0  # of a block that has a multiprocessor to itself
    above: int = 0  # sequences with no more rows, and
    up_to: int = UNBOUNDED  # with more than these, are another launch's

    def __str__(self) -> str:
        return self.words(
            self.grid, self.kv_heads, self.group, self.left, int(self.fixed), self.cluster,
            self.spread_units, self.above, self.up_to,
        )  # fmt: skip

    def units(self, index: int) -> int:
        """Without the keys that no query sees."""
        queries, keys = self.lengths[index]
        first = max(0, keys - queries - self.left) // 16 * 16
        return max(1, -(-(keys - first) // UNIT_KEYS))

    def tiles(self) -> set[tuple[int, int, int]]:
        """Row tiles of 16 for each key head of the launch's own sequences."""
        return {
            (index, head, row)
            for index, (queries, _) in enumerate(self.lengths)
            if self.above < queries * self.group <= self.up_to
            for head in range(self.kv_heads)
            for row in range(0, queries * self.group, 16)
        }

    def alone(self) -> Batch:
        """On another grid."""
        return replace(self, grid=7, lengths=self.lengths[-1:])

    @classmethod
    def draw(cls, seed: int) -> "Decode":
        """A random batch: even lengths and uneven ones, empty sequences, few blocks and many."""
        r = random.Random(seed)
        lengths = draw_lengths(r, r.random() < 0.4, longest=r.choice([60, 500, 3000]), most=17)
        left = r.choice([UNBOUNDED, UNBOUNDED, 0, 100])
        grid, heads, group = r.choice([1, 3, 8, 40]), r.choice([1, 2, 5]), r.choice([1, 4, 7, 16])
        fixed = r.random() < 0.4
        cluster = 0 if fixed else r.choice([0, 1, 2, 3])
        grid = grid >> cluster << cluster or 1 << cluster
        return cls(lengths, fixed, grid, heads, group, left, cluster, r.choice([0, 8]))


@dataclass(frozen=True)
class Latent(Batch):
    """A call of `mla_decode`."""

    blocks: int  # counting clusters, and those abreast, as one
    abreast: int
    heads: int
    cluster: int = 0  # log2
    pairs: bool = False  # a neighbour has a tile even if that has no rows

    def __str__(self) -> str:
        return self.words(
            self.grid, self.abreast, self.heads, int(self.fixed), self.cluster, int(self.pairs)
        )

    @property
    def grid(self) -> int:
        """All blocks."""
        return self.blocks * self.abreast << self.cluster

    def tiles(self) -> set[tuple[int, int, int]]:
        """Row tiles of 64, all heads together."""
        band = 64 * self.abreast if self.pairs else 64
        return {
            (index, 0, row)
            for index, (queries, _) in enumerate(self.lengths)
            for row in range(0, -(-queries * self.heads // band) * band, 64)
        }

    def alone(self) -> Batch:
        """On another grid."""
        return replace(self, blocks=7, lengths=self.lengths[-1:])

    @classmethod
    def draw(cls, seed: int) -> "Latent":
        """A random batch."""
        r = random.Random(seed)
        lengths = draw_lengths(r, seed % 3 == 0, longest=r.choice([60, 500, 9000]), most=9)
        blocks, abreast = r.choice([1, 3, 40]), r.choice([1, 2, 3, 4])
        fixed, heads = r.random() < 0.3, r.choice([1, 16, 40, 128])
        cluster = 0 if fixed else r.choice([0, 0, 1, 3])
        pairs = cluster == 0 and abreast % 2 == 0 and r.random() < 0.5
        return cls(lengths, fixed, blocks, abreast, heads, cluster, pairs)

    def of_clusters(self, found: list[Segment]) -> list[Segment]:
        """What each cluster does, whose blocks divide its units: in order, and about equally."""
        clusters = defaultdict(list)
        for s in found:
            clusters[s.block >> self.cluster, s.tile, s.piece].append(s)
        for parts in clusters.values():
            assert [s.block % (1 << self.cluster) for s in parts] == [*range(1 << self.cluster)]
            assert all(a.end == b.unit for a, b in pairwise(parts))
            counts = [s.end - s.unit for s in parts]
            assert counts == sorted(counts, reverse=True)
            assert max(counts) - min(counts) <= 1
        return [parts[0]._replace(end=parts[-1].end) for parts in clusters.values()]


def draw_lengths(
    r: random.Random, same: bool, longest: int, most: int
) -> tuple[tuple[int, int], ...]:
    """Random queries, up to `most`, and keys of up to 12 sequences."""
    pair = r.choice([0, 1, 1, 1, 5]), r.randint(0, longest)
    return tuple(
        pair if same else (r.choice([0, 1, 1, 2, most]), r.randint(0, r.choice([1, longest])))
        for _ in range(r.randint(0, 12))
    )


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The schedules, compiled for the host."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    built = tmp_path_factory.mktemp("schedule") / "print_segments"
    words: list[str | Path] = [
        compiler,
        "-std=c++17",
        "-O1",
        f"-I{HARNESS}",
        f"-I{ROOT}",
        "-o",
        built,
    ]
    subprocess.run([*words, HARNESS / "print_segments.cpp"], check=True)
    return built


def segments(program: Path, batches: Sequence[Batch]) -> list[list[Segment]]:
    """What every batch's blocks do."""
    text = "\n".join(map(str, batches))
    ran = subprocess.run([program], input=text, capture_output=True, text=True, check=True)
    parts = ran.stdout.split("end\n")[:-1]
    return [[Segment(*map(int, line.split())) for line in part.splitlines()] for part in parts]


def assert_whole(batch: Batch, found: list[Segment]) -> None:
    """Every unit of every tile is done once, and the pieces of a tile can be joined."""
    tiles = defaultdict(list)
    counters: dict[int, tuple[int, int, int]] = {}
    slots: set[int] = set()
    for s in found:
        if s.piece >= s.pieces:
            assert s.slot == -1, "only a cluster has pieces too many"
            assert s.unit == s.end == batch.units(s.sequence)
            continue
        tiles[s.tile].append(s)
        if s.pieces > 1 and s.slot >= 0:
            assert s.slot not in slots, "two pieces share a slot"
            slots.add(s.slot)
            assert counters.setdefault(s.counter, s.tile) == s.tile, "two tiles share a counter"
    assert set(tiles) == batch.tiles()
    for parts in tiles.values():
        parts.sort(key=lambda s: s.unit)
        assert [s.piece for s in parts] == list(range(len(parts)))
        assert {s.pieces for s in parts} == {len(parts)}
        assert parts[0].unit == 0
        assert parts[-1].end == batch.units(parts[0].sequence)
        assert all(a.end == b.unit for a, b in pairwise(parts))


@pytest.mark.parametrize("kernel", [Decode, Latent])
def test_every_unit_of_every_tile_is_done_once(
    program: Path, kernel: type[Decode] | type[Latent]
) -> None:
    """Whatever the batch, nothing is left out, done twice or joined with another's."""
    batches = [kernel.draw(seed) for seed in range(400)]
    for batch, found in zip(batches, segments(program, batches), strict=True):
        assert_whole(batch, batch.of_clusters(found) if isinstance(batch, Latent) else found)


@pytest.mark.parametrize(("kernel", "least_units"), [(Decode, 8), (Latent, 16)])
def test_fixed_pieces_depend_on_their_sequence_alone(
    program: Path, kernel: type[Decode] | type[Latent], least_units: int
) -> None:
    """With `deterministic`, a sequence is cut in the same places whatever else is in the batch."""
    batches = [b for b in map(kernel.draw, range(400)) if b.fixed and b.lengths]
    together = segments(program, batches)
    singles = segments(program, [b.alone() for b in batches])
    for batch, found, single in zip(batches, together, singles, strict=True):
        last = len(batch.lengths) - 1
        assert sorted(s[2:8] for s in found if s.sequence == last) == sorted(s[2:8] for s in single)
        assert all(s.pieces <= MOST_PIECES for s in found)
        assert all(s.end - s.unit >= least_units or s.end == batch.units(s.sequence) for s in found)


@pytest.mark.parametrize(("above", "up_to"), [(0, 16), (16, 64), (64, UNBOUNDED)])
def test_other_sequences_are_left_to_other_launches(program: Path, above: int, up_to: int) -> None:
    """A launch does its own sequences, as if there were no others."""
    batches = [replace(Decode.draw(seed), above=above, up_to=up_to) for seed in range(100)]
    for batch, found in zip(batches, segments(program, batches), strict=True):
        assert_whole(batch, found)


def test_blocks_get_equal_shares(program: Path) -> None:
    """No block has two units more than its share, or eight where its cluster has the tile."""
    batches = [b for b in map(Decode.draw, range(400)) if not b.fixed]
    for batch, found in zip(batches, segments(program, batches), strict=True):
        work: dict[int, int] = defaultdict(int)
        for s in found:
            work[s.block] += s.end - s.unit
        share = sum(work.values()) / batch.grid
        clustered = any(s.slot < 0 for s in found)
        assert max(work.values(), default=0) < share + (9 if clustered else 2)


def test_a_cluster_has_one_tile(program: Path) -> None:
    """The pieces of a tile are in the order of its cluster's blocks, and no other tile's are."""
    batches = [b for b in map(Decode.draw, range(400)) if b.cluster]
    seen = 0
    for batch, found in zip(batches, segments(program, batches), strict=True):
        if not any(s.slot < 0 for s in found):
            continue
        seen += 1
        assert all(s.piece == s.block % (1 << batch.cluster) for s in found)
        of_cluster = defaultdict(set)
        for s in found:
            of_cluster[s.block >> batch.cluster].add(s.tile)
        assert all(len(tiles) == 1 for tiles in of_cluster.values())
    assert seen >= 10


def test_even_tiles_that_nearly_fit_are_not_cut(program: Path) -> None:
    """64 sequences of 1,024 keys on 264 blocks: 31.03 units each, or two whole tiles of 16."""
    (found,) = segments(program, [Decode(((1, 1024),) * 64, False, 264, 8, 4)])
    assert {s.pieces for s in found} == {1}


def test_slots_and_counters_are_as_many_as_there_is_room_for(program: Path) -> None:
    """What workspace.h allocates for latent decode: each cluster's, or those of fixed pieces."""
    batches = [Latent.draw(seed) for seed in range(400)]
    for batch, found in zip(batches, segments(program, batches), strict=True):
        cut = [s for s in found if s.pieces > 1]
        slots, counters = 2 * batch.grid >> batch.cluster, 3 * batch.grid >> batch.cluster
        if batch.fixed:
            rows = sum(queries for queries, _ in batch.lengths) * batch.heads
            slots = counters = MOST_PIECES * (rows // 64 + len(batch.lengths) * batch.abreast)
        assert all(s.slot < slots and s.counter < counters for s in cut)


def test_tiles_of_a_sequence_are_walked_together(program: Path) -> None:
    """Neighbouring blocks read the same keys at the same time."""
    (found,) = segments(program, [Latent(((1, 8192),) * 64, False, 66, 2, 128)])
    of_block = defaultdict(list)
    for s in found:
        of_block[s.block].append((s.sequence, *s[4:8]))
        assert s.row == s.block % 2 * 64
    assert all(of_block[block] == of_block[block + 1] for block in range(0, 132, 2))
    assert {s.pieces for s in found} == {1}  # 124 units each, or a whole sequence of 128

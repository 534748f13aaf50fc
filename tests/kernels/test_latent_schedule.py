"""How the CUDA kernel for latent attention shares out its work, run on the host."""

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
ROWS, UNIT_KEYS, MOST_PIECES = 64, 64, 16


@dataclass(frozen=True)
class Batch:
    """What the schedule depends on."""

    blocks: int  # counting those abreast as one
    abreast: int
    heads: int
    fixed: bool
    lengths: tuple[tuple[int, int], ...]  # queries and keys

    def __str__(self) -> str:
        numbers = [self.blocks * self.abreast, self.abreast, self.heads, int(self.fixed)]
        numbers += [len(self.lengths), *(n for pair in self.lengths for n in pair)]
        return " ".join(map(str, numbers))


def draw(seed: int) -> Batch:
    """A random batch: even lengths and uneven ones, empty sequences, few blocks and many."""
    r = random.Random(seed)
    longest = r.choice([60, 500, 9000])
    pair = r.choice([0, 1, 1, 3]), r.randint(0, longest)
    lengths = [
        pair if seed % 3 == 0 else (r.choice([0, 1, 1, 2, 9]), r.randint(0, r.choice([1, longest])))
        for _ in range(r.randint(0, 12))
    ]
    blocks, abreast, heads = (
        r.choice([1, 3, 40]),
        r.choice([1, 2, 3, 4]),
        r.choice([1, 16, 40, 128]),
    )
    return Batch(blocks, abreast, heads, r.random() < 0.3, tuple(lengths))


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The schedule, compiled for the host."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    built = tmp_path_factory.mktemp("schedule") / "print_latent_segments"
    words = [compiler, "-std=c++17", "-O1", f"-I{HARNESS}", f"-I{ROOT}", "-o", built]
    subprocess.run([*words, HARNESS / "print_latent_segments.cpp"], check=True)
    return built


def segments(program: Path, batches: list[Batch]) -> list[list[tuple[int, ...]]]:
    """What every batch's blocks do."""
    text = "\n".join(map(str, batches))
    ran = subprocess.run([program], input=text, capture_output=True, text=True, check=True)
    parts = ran.stdout.split("end\n")[:-1]
    return [[tuple(map(int, line.split())) for line in part.splitlines()] for part in parts]


def test_every_unit_of_every_tile_is_done_once(program: Path) -> None:
    """Whatever the batch, nothing is left out, done twice or joined with another's."""
    batches = [draw(seed) for seed in range(400)]
    for batch, found in zip(batches, segments(program, batches), strict=True):
        tiles = defaultdict(list)
        counters: dict[int, tuple[int, int]] = {}
        slots: set[int] = set()
        for _, index, row, unit, end, pieces, piece, slot, counter in found:
            tiles[index, row].append((unit, end, pieces, piece))
            if pieces > 1:
                assert slot not in slots, "two pieces share a slot"
                slots.add(slot)
                assert counters.setdefault(counter, (index, row)) == (index, row)
        expected = {
            (index, row)
            for index, (queries, _) in enumerate(batch.lengths)
            for row in range(0, queries * batch.heads, ROWS)
        }
        assert set(tiles) == expected
        for (index, _), parts in tiles.items():
            parts.sort()
            assert [part[3] for part in parts] == list(range(len(parts)))
            assert {part[2] for part in parts} == {len(parts)}
            assert parts[0][0] == 0
            assert parts[-1][1] == max(1, -(-batch.lengths[index][1] // UNIT_KEYS))
            assert all(a[1] == b[0] for a, b in pairwise(parts))


def test_slots_and_counters_are_as_many_as_there_is_room_for(program: Path) -> None:
    """What latent_launch.cpp allocates: two slots and three counters a block, or pieces' own."""
    batches = [draw(seed) for seed in range(400)]
    for batch, found in zip(batches, segments(program, batches), strict=True):
        cut = [s for s in found if s[5] > 1]
        slots, counters = 2 * batch.blocks * batch.abreast, 3 * batch.blocks * batch.abreast
        if batch.fixed:
            rows = sum(queries for queries, _ in batch.lengths) * batch.heads
            slots = counters = MOST_PIECES * (rows // ROWS + len(batch.lengths) * batch.abreast)
        assert all(s[7] < slots and s[8] < counters for s in cut)


def test_fixed_pieces_depend_on_their_sequence_alone(program: Path) -> None:
    """With `deterministic`, a sequence is cut in the same places whatever else is in the batch."""
    batches = [b for b in map(draw, range(400)) if b.fixed and b.lengths]
    alone = [replace(b, blocks=7, lengths=b.lengths[-1:]) for b in batches]
    both = zip(batches, segments(program, batches), segments(program, alone), strict=True)
    for batch, found, single in both:
        last = len(batch.lengths) - 1
        assert sorted(s[2:7] for s in found if s[1] == last) == sorted(s[2:7] for s in single)
        assert all(s[5] <= MOST_PIECES for s in found)


def test_tiles_of_a_sequence_are_walked_together(program: Path) -> None:
    """Neighbouring blocks read the same keys at the same time."""
    batch = Batch(66, 2, 128, False, ((1, 8192),) * 64)
    (found,) = segments(program, [batch])
    of_block = defaultdict(list)
    for block, index, row, *units, _, _ in found:
        of_block[block].append((index, *units))
        assert row == block % 2 * ROWS
    assert all(of_block[block] == of_block[block + 1] for block in range(0, 132, 2))
    assert {s[5] for s in found} == {1}  # 124 units each, or a whole sequence of 128

"""Collective operations over `torch.distributed`, in real processes with Gloo."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mainboard.platforms.cpu import CpuPlatform
from mainboard.platforms.cuda import CudaPlatform
from mainboard.platforms.resolve import resolve_obj_by_qualname
from mainboard.platforms.rocm import RocmPlatform

PROGRAM = """
import json, sys
import torch, torch.distributed as dist
from mainboard.platforms.cpu import CpuPlatform
from mainboard.platforms.resolve import resolve_obj_by_qualname

rank, world, store = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
dist.init_process_group(CpuPlatform.dist_backend, f"file://{store}", rank=rank, world_size=world)
group = dist.new_group([2, 1])  # in the order of global ranks, and without process 0
cls = resolve_obj_by_qualname(CpuPlatform.get_device_communicator_cls())
c = cls(dist.group.WORLD, unique_name="world")
own = torch.arange(6.).view(2, 3) + 10 * rank
said = {}
said["all_reduce"] = c.all_reduce(own.clone())
for dim in (0, 1, -1):
    said[f"all_gather {dim}"] = c.all_gather(own, dim)
said["all_gather transposed"] = c.all_gather(own.t(), 0)
said["all_gatherv"] = c.all_gatherv(torch.full((rank + 1, 2), float(rank)), 0, [1, 2, 3])
said["all_gatherv 1"] = c.all_gatherv(torch.full((2, rank), float(rank)), 1, [0, 1, 2])
wide = torch.arange(12.).view(2, 6) * (rank + 1)
said["reduce_scatter"] = c.reduce_scatter(wide)
said["reduce_scatter 0"] = c.reduce_scatter(wide.t(), 0)
said["reduce_scatterv"] = c.reduce_scatterv(wide.t(), 0, [1, 0, 5])
said["gather"] = c.gather(own, dst=1, dim=0)
said["broadcast"] = c.broadcast(own.clone(), src=2)
if rank == 0:
    c.send(own); said["ring"] = c.recv((2, 3), torch.float32)
else:
    said["ring"] = c.recv((2, 3), torch.float32); c.send(own)
if rank:
    part = cls(group)
    said["part"] = [part.rank_in_group, part.world_size, part.ranks]
    said["part broadcast"] = part.broadcast(own.clone(), src=1)
    said["part sum"] = part.all_reduce(own.to(torch.bfloat16))
errors = {}
for name, call in {
    "dim": lambda: c.all_gather(own, 2),
    "uneven": lambda: c.reduce_scatter(torch.ones(4), 0),
    "sizes": lambda: c.all_gatherv(own, 0, [1, 1, 1]),
    "sum": lambda: c.reduce_scatterv(own, 0, [1, 1, 1]),
    "rank": lambda: c.broadcast(own, 3),
    "self": lambda: c.send(own, rank),
}.items():
    try:
        call()
    except ValueError as error:
        errors[name] = str(error)
c.barrier()
c.destroy()
plain = {k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in said.items()}
print(json.dumps([plain, errors]))
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What each of three processes got from each operation, and the errors that it saw."""
    store = tmp_path_factory.mktemp("store") / "store"
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM]
    processes = [
        subprocess.Popen(
            [*command, str(rank), "3", str(store)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(3)
    ]
    answers = []
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        answers.append(json.loads(out.splitlines()[-1]))
    return answers


OWN = [[[x + 10.0 * rank for x in row] for row in ([0, 1, 2], [3, 4, 5])] for rank in range(3)]
WIDE = [[6.0 * x for x in range(6)], [6.0 * x for x in range(6, 12)]]
WIDE_T = [list(column) for column in zip(*WIDE, strict=True)]
EXPECTED: list[tuple[str, list[Any]]] = [
    ("all_reduce", [[[30, 33, 36], [39, 42, 45]]] * 3),
    ("all_gather 0", [[*OWN[0], *OWN[1], *OWN[2]]] * 3),
    ("all_gather 1", [[[*OWN[0][i], *OWN[1][i], *OWN[2][i]] for i in (0, 1)]] * 3),
    ("all_gather -1", [[[*OWN[0][i], *OWN[1][i], *OWN[2][i]] for i in (0, 1)]] * 3),
    (
        "all_gather transposed",
        [[list(column) for own in OWN for column in zip(*own, strict=True)]] * 3,
    ),
    ("all_gatherv", [[[r, r] for r in (0, 1, 1, 2, 2, 2)]] * 3),
    ("all_gatherv 1", [[[1, 2, 2], [1, 2, 2]]] * 3),
    ("reduce_scatter", [[row[2 * r : 2 * r + 2] for row in WIDE] for r in range(3)]),
    ("reduce_scatter 0", [WIDE_T[2 * r : 2 * r + 2] for r in range(3)]),
    ("reduce_scatterv", [WIDE_T[:1], [], WIDE_T[1:]]),
    ("gather", [None, [*OWN[0], *OWN[1], *OWN[2]], None]),
    ("broadcast", [OWN[2]] * 3),
    ("ring", [OWN[2], OWN[0], OWN[1]]),
]


@pytest.mark.multiprocess
@pytest.mark.parametrize(("operation", "expected"), EXPECTED)
def test_operation(said: list[Any], operation: str, expected: list[Any]) -> None:
    """Each process gets what the operation means, along any dimension and for uneven parts."""
    assert expected == [results[operation] for results, _ in said]


@pytest.mark.multiprocess
def test_part_of_the_processes(said: list[Any]) -> None:
    """In a group of some processes, ranks are those within it."""
    assert [[0, 2, [1, 2]], [1, 2, [1, 2]]] == [results["part"] for results, _ in said[1:]]
    assert [OWN[2], OWN[2]] == [results["part broadcast"] for results, _ in said[1:]]
    assert [[30, 32, 34], [36, 38, 40]] == said[1][0]["part sum"] == said[2][0]["part sum"]


@pytest.mark.multiprocess
def test_wrong_arguments(said: list[Any]) -> None:
    """What cannot be done is refused before anything is sent, with what was expected."""
    for rank, (_, errors) in enumerate(said):
        assert "dimension 2 of a tensor of shape (2, 3)" in errors["dim"]
        assert "4 entries" in errors["uneven"] and "use reduce_scatterv" in errors["uneven"]
        assert f"number {rank} is this process's 2" in errors["sizes"]
        assert "add up to the 2 entries" in errors["sum"]
        assert "processes 0 to 2" in errors["rank"]
        assert f"process {rank}, which is this process itself" in errors["self"]


@pytest.mark.parametrize("platform", [CpuPlatform, CudaPlatform, RocmPlatform])
def test_platforms_name_the_communicator(platform: Any) -> None:
    """Every built-in platform has a backend, and a class that takes its groups."""
    assert platform.dist_backend in ("gloo", "nccl")
    cls = resolve_obj_by_qualname(platform.get_device_communicator_cls())
    assert "DeviceCommunicator" == cls.__name__


@pytest.mark.multiprocess
def test_group_of_one(tmp_path: Path) -> None:
    """A group of one process gives back what it gets, and sends nothing."""
    program = f"""
import torch, torch.distributed as dist
from mainboard.platforms.communicator import DeviceCommunicator
dist.init_process_group("gloo", "file://{tmp_path / "store"}", rank=0, world_size=1)
c, x = DeviceCommunicator(dist.group.WORLD), torch.ones(2, 3)
for answer in (c.all_reduce(x), c.all_gather(x), c.all_gatherv(x, 0, [2]), c.reduce_scatter(x),
               c.reduce_scatterv(x, 0, [2]), c.gather(x), c.broadcast(x)):
    assert answer is x
dist.destroy_process_group()
"""
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

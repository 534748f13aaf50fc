"""Collective operations over `torch.distributed`, in real processes: Gloo, and NCCL on two devices."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mainboard.platforms import cuda
from mainboard.platforms.cpu import CpuPlatform
from mainboard.platforms.cuda import CudaPlatform
from mainboard.platforms.resolve import resolve_obj_by_qualname
from mainboard.platforms.rocm import RocmPlatform

PROGRAM = """
import json, sys
import torch, torch.distributed as dist
from mainboard.platforms.resolve import resolve_obj_by_qualname

rank, world, store = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
platform = resolve_obj_by_qualname(sys.argv[4])()
device = torch.device("cpu") if platform.device_type == "cpu" else torch.device(platform.device_type, rank)
platform.set_device(device)
dist.init_process_group(platform.dist_backend, f"file://{store}", rank=rank, world_size=world)
host = dist.new_group(backend="gloo")
cls = resolve_obj_by_qualname(platform.get_device_communicator_cls())
c = cls(host, device, dist.group.WORLD, unique_name="world")
own = torch.arange(6., device=device).view(2, 3) + 10 * rank
said = {}
said["all_reduce"] = c.all_reduce(own.clone())
said["all_reduce bfloat16"] = c.all_reduce(own.to(torch.bfloat16))
for dim in (0, 1, -1):
    said[f"all_gather {dim}"] = c.all_gather(own, dim)
said["all_gather transposed"] = c.all_gather(own.t(), 0)
filled = lambda *shape: torch.full(shape, float(rank), device=device)
said["all_gatherv"] = c.all_gatherv(filled(rank + 1, 2), 0, list(range(1, world + 1)))
said["all_gatherv 1"] = c.all_gatherv(filled(2, rank), 1, list(range(world)))
wide = torch.arange(4. * world, device=device).view(2, 2 * world) * (rank + 1)
said["reduce_scatter"] = c.reduce_scatter(wide)
said["reduce_scatter 0"] = c.reduce_scatter(wide.t(), 0)
said["reduce_scatterv"] = c.reduce_scatterv(wide.t(), 0, [1, *[0] * (world - 2), 2 * world - 1])
said["gather"] = c.gather(own, dst=1, dim=0)
said["broadcast"] = c.broadcast(own.clone(), src=world - 1)
if rank == 0:
    c.send(own); said["ring"] = c.recv((2, 3), torch.float32)
else:
    said["ring"] = c.recv((2, 3), torch.float32); c.send(own)
assert {device.type} == {x.device.type for x in said.values() if x is not None}
if world > 2:
    group = dist.new_group([2, 1])  # in the order of global ranks, and without process 0
    if rank:
        part = cls(group)
        said["part"] = [part.rank_in_group, part.world_size, part.ranks]
        said["part broadcast"] = part.broadcast(own.clone(), src=1)
        said["part sum"] = part.all_reduce(own.to(torch.bfloat16))
errors = {}
for name, call in {
    "dim": lambda: c.all_gather(own, 2),
    "uneven": lambda: c.reduce_scatter(torch.ones(world + 1), 0),
    "sizes": lambda: c.all_gatherv(own, 0, [1] * world),
    "sum": lambda: c.reduce_scatterv(own, 0, [2] * world),
    "rank": lambda: c.broadcast(own, world),
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


class Group(NamedTuple):
    """How many processes there were, and what each got from each operation and each wrong call."""

    world: int
    results: list[dict[str, Any]]
    errors: list[dict[str, str]]


@pytest.fixture(
    scope="module",
    params=["cpu.CpuPlatform", pytest.param("cuda.CudaPlatform", marks=pytest.mark.gpu)],
)
def said(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Group:
    """Three processes with Gloo, or two with NCCL and a device each, that ran the program."""
    world = 3
    if request.param.startswith("cuda"):
        if cuda.probe().value is None or CudaPlatform.device_count() < 2:
            pytest.skip("fewer than two NVIDIA devices")
        world = 2
    store = tmp_path_factory.mktemp("store") / "store"
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM]
    path = f"mainboard.platforms.{request.param}"
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(world), str(store), path],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    answers = []
    try:
        for process in processes:
            out, err = process.communicate(timeout=120)
            assert process.returncode == 0, err
            answers.append(json.loads(out.splitlines()[-1]))
    finally:
        for process in processes:
            process.kill()
    return Group(world, [results for results, _ in answers], [errors for _, errors in answers])


def _columns(rows: list[list[float]]) -> list[list[float]]:
    return [list(column) for column in zip(*rows, strict=True)]


def _expected(world: int) -> dict[str, list[Any]]:
    """What each process of so many gets from each operation."""
    ranks = range(world)
    own = [[[x + 10.0 * rank for x in row] for row in ([0, 1, 2], [3, 4, 5])] for rank in ranks]
    total = [[sum(each[i][j] for each in own) for j in range(3)] for i in range(2)]
    beside = [[x for each in own for x in each[i]] for i in range(2)]
    below = [row for each in own for row in each]
    factor = sum(rank + 1.0 for rank in ranks)
    wide = [[factor * (2 * world * i + j) for j in range(2 * world)] for i in range(2)]
    tall = _columns(wide)
    return {
        "all_reduce": [total] * world,
        "all_reduce bfloat16": [total] * world,
        "all_gather 0": [below] * world,
        "all_gather 1": [beside] * world,
        "all_gather -1": [beside] * world,
        "all_gather transposed": [[column for each in own for column in _columns(each)]] * world,
        "all_gatherv": [[[r, r] for r in ranks for _ in range(r + 1)]] * world,
        "all_gatherv 1": [[[r for r in ranks for _ in range(r)]] * 2] * world,
        "reduce_scatter": [[row[2 * r : 2 * r + 2] for row in wide] for r in ranks],
        "reduce_scatter 0": [tall[2 * r : 2 * r + 2] for r in ranks],
        "reduce_scatterv": [tall[:1], *[[]] * (world - 2), tall[1:]],
        "gather": [below if r == 1 else None for r in ranks],
        "broadcast": [own[-1]] * world,
        "ring": [own[r - 1] for r in ranks],
    }


@pytest.mark.multiprocess
@pytest.mark.parametrize("operation", _expected(3))
def test_operation(said: Group, operation: str) -> None:
    """Each process gets what the operation means, along any dimension and for uneven parts."""
    expected = _expected(said.world)[operation]
    assert expected == [results[operation] for results in said.results]


@pytest.mark.multiprocess
def test_part_of_the_processes(said: Group) -> None:
    """In a group of some processes, ranks are those within it."""
    if said.world < 3:
        pytest.skip("a part of two processes is one")
    one, two = said.results[1:]
    assert [[0, 2, [1, 2]], [1, 2, [1, 2]]] == [one["part"], two["part"]]
    last = _expected(3)["broadcast"][0]
    assert last == one["part broadcast"] == two["part broadcast"]
    assert [[30, 32, 34], [36, 38, 40]] == one["part sum"] == two["part sum"]


@pytest.mark.multiprocess
def test_wrong_arguments(said: Group) -> None:
    """What cannot be done is refused before anything is sent, with what was expected."""
    for rank, errors in enumerate(said.errors):
        assert "dimension 2 of a tensor of shape (2, 3)" in errors["dim"]
        assert f"{said.world + 1} entries" in errors["uneven"]
        assert "use reduce_scatterv" in errors["uneven"]
        assert f"number {rank} is this process's 2" in errors["sizes"]
        assert "add up to the 2 entries" in errors["sum"]
        assert f"processes 0 to {said.world - 1}" in errors["rank"]
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

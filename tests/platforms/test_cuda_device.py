"""On a real NVIDIA device: what is said of it without starting it is what torch says of it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mainboard.platforms.cuda import CudaPlatform, NonNvmlCudaPlatform, probe
from mainboard.platforms.machine import Machine
from mainboard.platforms.recording import platform_on
from mainboard.platforms.verdict import State

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(probe().state != State.ACTIVATED, reason=f"no device: {probe().reason}"),
]


def test_verdict() -> None:
    """The device is activated with NVML, by name and driver."""
    verdict = probe()
    assert ("available", "mainboard.platforms.cuda.CudaPlatform") == (verdict.code, verdict.value)
    assert CudaPlatform.get_device_name() in verdict.reason


def test_facts_agree_with_torch() -> None:
    """Name, generation, memory and id are the same through NVML and through torch."""
    import torch

    assert torch.cuda.device_count() == CudaPlatform.device_count()
    assert torch.cuda.get_device_name(0) == CudaPlatform.get_device_name()
    assert torch.cuda.get_device_capability(0) == CudaPlatform.get_device_capability()
    properties = CudaPlatform.get_device_properties(0)
    assert f"GPU-{properties.uuid}" == CudaPlatform.get_device_uuid()
    assert 0.9 < properties.total_memory / CudaPlatform.get_device_total_memory() <= 1.0
    assert properties.multi_processor_count == CudaPlatform.num_compute_units()


def test_both_classes_agree() -> None:
    """The platform without NVML gives the same facts through torch."""
    for name in ("get_device_name", "get_device_capability", "get_device_uuid"):
        assert getattr(CudaPlatform, name)() == getattr(NonNvmlCudaPlatform, name)()


def test_operations() -> None:
    """Each operation on the device works."""
    import torch

    platform = CudaPlatform()
    device = torch.device("cuda", platform.current_device())
    platform.set_device(device)
    stream, event = platform.Stream(), platform.Event()
    with platform.inference_mode(), platform.stream(stream):
        assert platform.current_stream() == stream
        block = torch.ones(1 << 20, device=device)
        event.record()
    assert block.is_inference()
    assert stream == torch.cuda.Stream(stream_id=stream.stream_id, device_index=0, device_type=1)
    platform.synchronize()
    assert event.query() and stream.query()
    assert platform.get_current_memory_usage() >= block.nbytes
    assert platform.memory_stats()["allocated_bytes.all.current"] >= block.nbytes
    free, total = platform.mem_get_info()
    assert 0 < free < total
    del block
    platform.empty_cache()
    assert platform.cudart().cudaGetErrorString(platform.cudart().cudaError.success)


def test_peak_of_memory() -> None:
    """The most bytes since the last reset are counted, and less after the next one."""
    import torch

    CudaPlatform.synchronize()
    CudaPlatform.reset_peak_memory_stats()
    before = CudaPlatform.memory_allocated()
    block = torch.empty(64 << 20, dtype=torch.uint8, device="cuda")
    del block
    assert CudaPlatform.max_memory_allocated() >= before + (64 << 20)
    CudaPlatform.reset_peak_memory_stats()
    assert CudaPlatform.max_memory_allocated() == CudaPlatform.memory_allocated() < before + 1024


def test_seed() -> None:
    """The same seed gives the same numbers on every device."""
    import torch

    drawn = []
    for seed in (1, 1, 2):
        CudaPlatform.manual_seed_all(seed)
        numbers = range(CudaPlatform.device_count())
        drawn.append([torch.rand(4, device=f"cuda:{number}").tolist() for number in numbers])
    assert drawn[0] == drawn[1] != drawn[2]


def test_graphs_share_a_pool() -> None:
    """Two graphs captured into the platform's pool replay, each with its own result."""
    import torch

    platform = CudaPlatform()
    pool = platform.get_global_graph_pool()
    assert pool == platform.get_global_graph_pool()
    source = torch.zeros(4, device="cuda")
    (source + 1).sum()  # what a first use allocates must not be in a graph
    platform.synchronize()
    graphs, results = [torch.cuda.CUDAGraph() for _ in range(2)], []
    for place, graph in enumerate(graphs):
        with torch.cuda.graph(graph, pool=pool):
            results.append((source + place).sum())
    source.fill_(2)
    for graph in graphs:
        graph.replay()
    platform.synchronize()
    assert [8.0, 12.0] == [float(result) for result in results]


def test_events_measure_time() -> None:
    """Time between two events is that of the work between them."""
    import torch

    block = torch.ones(64 << 20, device="cuda")
    start, end = (CudaPlatform.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(20):
        block.mul_(1.0)
    end.record()
    CudaPlatform.synchronize()
    assert 0.1 < start.elapsed_time(end) < 1000


two_devices = pytest.mark.skipif(
    probe().state != State.ACTIVATED or CudaPlatform.device_count() < 2,
    reason="fewer than two devices",
)


@two_devices
def test_links_are_what_torch_can_use() -> None:
    """Access between two devices is as torch sees it, and a copy between them is whole."""
    import torch

    (link, *_) = CudaPlatform.links()
    assert link.peer == torch.cuda.can_device_access_peer(0, 1)
    assert CudaPlatform.is_fully_connected([0, 1]) == (link.kind == "nvlink")
    assert {link.kind} <= {"nvlink", "pcie"}
    block = torch.arange(1 << 20, device="cuda:0")
    assert torch.equal(block.cpu(), block.to("cuda:1").cpu())


@two_devices
def test_operations_on_the_second_device() -> None:
    """The device that is set is the one that counts, allocates and is asked."""
    import torch

    first, second = torch.device("cuda", 0), torch.device("cuda", 1)
    try:
        CudaPlatform.set_device(second)
        assert 1 == CudaPlatform.current_device()
        before = CudaPlatform.memory_allocated(first), CudaPlatform.memory_allocated()
        block = torch.ones(1 << 20, device="cuda")
        assert second == block.device
        assert before[0] == CudaPlatform.memory_allocated(first)
        assert before[1] + block.nbytes <= CudaPlatform.memory_allocated()
        CudaPlatform.synchronize(second)
        assert (
            CudaPlatform.get_device_properties(1).uuid != CudaPlatform.get_device_properties(0).uuid
        )
    finally:
        CudaPlatform.set_device(first)


@pytest.mark.multiprocess
def test_no_driver_and_no_context_in_the_process_that_asks() -> None:
    """Facts are had without CUDA's library, NVML's or torch in this process, so it can fork."""
    code = """
import json, sys
from mainboard.platforms.cuda import CudaPlatform as p, probe
verdict = probe()
p.get_device_name(); p.get_device_capability(); p.get_device_total_memory(); p.describe()
maps = open("/proc/self/maps").read()
loaded = [name for name in ("libcuda", "libnvidia-ml") if name in maps]
print(json.dumps([verdict.code, loaded, "torch" in sys.modules]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ["available", [], False] == json.loads(done.stdout)


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("setting", "code"),
    [("", "no_visible_devices"), ("99", "no_visible_devices"), ("0", "available")],
)
def test_visible_devices(setting: str, code: str) -> None:
    """The control variable decides whether the device can be used."""
    program = "from mainboard.platforms.cuda import probe; print(probe().code)"
    environ = {**os.environ, "CUDA_VISIBLE_DEVICES": setting}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environ
    )
    assert code == done.stdout.strip()


@pytest.mark.multiprocess
def test_what_must_hold_at_the_driver(tmp_path: Path) -> None:
    """No context after every property was read, a fork that uses CUDA, changed variables honoured."""
    script = Path(__file__).parents[2] / "benchmarks" / "cuda_platform_check.py"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(json.loads(done.stdout).values())


def test_a_record_of_this_machine_is_this_machine() -> None:
    """The devices of a record that is made here are those that the driver lists."""
    from mainboard.platforms.recording import record

    made = record("recorded in a test")["facts"]["devices"]["cuda"]
    assert CudaPlatform.device_count() == len(made["devices"])
    assert CudaPlatform.get_device_name() == made["devices"][0]["name"]
    assert CudaPlatform.num_compute_units() == made["devices"][0]["compute_units"]


def test_without_nvml(machines: Any) -> None:
    """Where NVML fails (a stub does), the real driver lists the same devices."""
    machines.install_nvml(init="12")
    machine = Machine()
    verdict = probe(machine)
    assert "nvml_library_missing" == verdict.code, verdict.reason
    assert verdict.value is not None
    platform = platform_on(machine, verdict.value)
    assert issubclass(platform, NonNvmlCudaPlatform)
    numbers = range(CudaPlatform.device_count())
    assert len(numbers) == platform.device_count()
    for number in numbers:
        assert CudaPlatform.get_device_uuid(number) == platform.get_device_uuid(number)
        assert CudaPlatform.num_compute_units(number) == platform.num_compute_units(number)


def test_nvml_that_hangs(machines: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An NVML that never answers (a stub) costs its bound on a machine whose devices work."""
    monkeypatch.setenv("MAINBOARD_PROBE_TIMEOUT", "0.5")
    machines.install_nvml(init="hang")
    verdict = probe(Machine())
    assert "driver_no_answer" == verdict.code and verdict.milliseconds < 2000

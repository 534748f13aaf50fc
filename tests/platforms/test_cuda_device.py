"""On a real NVIDIA device: what is said of it without starting it is what torch says of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mainboard.platforms.cuda import CudaPlatform, NonNvmlCudaPlatform, probe
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
    platform.manual_seed_all(1)
    stream, event = platform.Stream(), platform.Event()
    with platform.inference_mode(), platform.stream(stream):
        block = torch.ones(1 << 20, device=device)
        event.record()
    assert stream == torch.cuda.Stream(stream_id=stream.stream_id, device_index=0, device_type=1)
    platform.synchronize()
    assert platform.get_current_memory_usage() >= block.nbytes
    assert platform.memory_stats()["allocated_bytes.all.current"] >= block.nbytes
    free, total = platform.mem_get_info()
    assert 0 < free < total
    del block
    platform.empty_cache()
    assert platform.get_global_graph_pool() == platform.get_global_graph_pool()


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

"""Operations on devices: handed on to torch, or refused by name."""

import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from mainboard.errors import PlatformUnavailableError
from mainboard.platforms.cpu import CpuPlatform
from mainboard.platforms.interface import Platform

CALLS: list[tuple[str, tuple[Any, ...]]] = []


class FakePlatform(Platform):
    """A platform of a device whose torch module records what it is asked."""

    device_name = "fake"
    device_type = "fakedevice"


@pytest.fixture
def fake_torch_module(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """A `torch.fakedevice` that records its calls; the device itself exists nowhere."""
    module = types.ModuleType("torch.fakedevice")

    def recorder(name: str, result: Any) -> Any:
        return lambda *args: CALLS.append((name, args)) or result

    results = {
        "current_device": 1,
        "device_count": 2,
        "mem_get_info": (3, 4),
        "memory_stats": {"active": 5},
        "memory_allocated": 6,
        "max_memory_allocated": 7,
        "current_stream": "stream",
        "stream": "scope",
        "get_device_properties": "properties",
        "graph_pool_handle": (0, 1),
        "cudart": "runtime",
    }
    quiet = ["synchronize", "empty_cache", "set_device", "manual_seed_all"]
    for name in [*results, *quiet, "reset_peak_memory_stats"]:
        setattr(module, name, recorder(name, results.get(name)))
    module.Stream = type("Stream", (), {})  # type: ignore[attr-defined]
    module.Event = type("Event", (), {})  # type: ignore[attr-defined]
    monkeypatch.setattr(torch, "fakedevice", module, raising=False)
    CALLS.clear()
    yield module


@pytest.mark.parametrize(
    ("name", "args", "passed", "result"),
    [
        ("synchronize", (), (None,), None),
        ("synchronize", (1,), (1,), None),
        ("empty_cache", (), (), None),
        ("current_device", (), (), 1),
        ("device_count", (), (), 2),
        ("set_device", (1,), (1,), None),
        ("current_stream", (), (None,), "stream"),
        ("stream", ("s",), ("s",), "scope"),
        ("mem_get_info", (1,), (1,), (3, 4)),
        ("memory_stats", (), (None,), {"active": 5}),
        ("memory_allocated", (), (None,), 6),
        ("max_memory_allocated", (), (None,), 7),
        ("reset_peak_memory_stats", (), (None,), None),
        ("get_device_properties", (0,), (0,), "properties"),
        ("manual_seed_all", (42,), (42,), None),
        ("graph_pool_handle", (), (), (0, 1)),
        ("cudart", (), (), "runtime"),
    ],
)
def test_delegate(
    fake_torch_module: object,
    name: str,
    args: tuple[Any, ...],
    passed: tuple[Any, ...],
    result: Any,
) -> None:
    """An operation reaches the platform's torch module with its arguments, and returns what it says."""
    assert result == getattr(FakePlatform(), name)(*args)
    assert [(name, passed)] == CALLS


def test_classes_of_the_torch_module(fake_torch_module: Any) -> None:
    """Stream and Event are the classes themselves, from an object and from the class."""
    assert fake_torch_module.Stream is FakePlatform().Stream is FakePlatform.Stream
    assert fake_torch_module.Event is FakePlatform().Event


def test_memory_info_has_names(fake_torch_module: object) -> None:
    """What is a pair in torch can be read by name here."""
    assert (3, 4) == (FakePlatform.mem_get_info().free, FakePlatform.mem_get_info().total)


def test_memory_in_use(fake_torch_module: object) -> None:
    """By default the memory in use is that of torch's allocator."""
    assert 6.0 == FakePlatform.get_current_memory_usage()


def test_one_graph_pool(fake_torch_module: object) -> None:
    """The shared pool is made once for a platform, and not shared with another platform."""

    class One(FakePlatform):
        pass

    assert One().get_global_graph_pool() == One().get_global_graph_pool() == (0, 1)
    assert [("graph_pool_handle", ())] == CALLS
    assert FakePlatform._global_graph_pool is None


def test_operation_that_torch_lacks(fake_torch_module: Any) -> None:
    """An operation that the torch module lacks is refused by its name, and the module's."""
    del fake_torch_module.mem_get_info
    with pytest.raises(NotImplementedError, match=r"torch\.fakedevice has no 'mem_get_info'"):
        FakePlatform.mem_get_info()


def test_class_that_torch_lacks(fake_torch_module: Any) -> None:
    """A class that the torch module lacks is an absent attribute, which hasattr can ask for."""
    del fake_torch_module.Event
    assert hasattr(FakePlatform(), "Stream") and not hasattr(FakePlatform(), "Event")
    with pytest.raises(AttributeError, match=r"torch\.fakedevice has no 'Event'"):
        _ = FakePlatform().Event


@pytest.mark.parametrize("device_type", ["nosuchdevice", "", "float32"])
def test_device_that_torch_lacks(monkeypatch: pytest.MonkeyPatch, device_type: str) -> None:
    """A device type without a torch module is an error that names the platform."""
    monkeypatch.setattr(FakePlatform, "device_type", device_type)
    with pytest.raises(PlatformUnavailableError, match="platform 'fake' was asked for its torch"):
        FakePlatform.synchronize()


def test_cpu_operations() -> None:
    """Each operation of the CPU's platform works, and gives the type that it gives elsewhere."""
    cpu = CpuPlatform()
    cpu.synchronize()
    cpu.empty_cache()
    cpu.set_device(torch.device("cpu"))
    assert 0 == cpu.current_device()
    assert 1 == cpu.device_count()
    with cpu.stream(cpu.current_stream()):
        assert isinstance(cpu.current_stream(), cpu.Stream)
    assert cpu.Event is torch.cpu.Event
    assert 0 < cpu.mem_get_info().free <= cpu.get_device_total_memory()
    assert cpu.memory_stats()["resident_bytes"] > 10_000_000
    assert cpu.get_current_memory_usage() > 10_000_000
    assert cpu.get_device_properties().recommended_threads == cpu.num_compute_units()
    assert cpu.get_device_name()


def test_cpu_peak_memory() -> None:
    """The most memory since the last reset is counted, and the reset takes effect."""
    cpu = CpuPlatform()
    try:
        cpu.reset_peak_memory_stats()
    except NotImplementedError as error:
        pytest.skip(str(error))
    before = cpu.max_memory_allocated()
    size = 256 << 20  # more than the C library keeps of what other tests freed
    block = torch.ones(size, dtype=torch.uint8)
    assert cpu.max_memory_allocated() >= before + size // 2
    stats = cpu.memory_stats()
    assert stats["peak_resident_bytes"] >= stats["resident_bytes"]
    del block
    cpu.reset_peak_memory_stats()
    assert cpu.max_memory_allocated() < before + size // 2


def test_cpu_has_no_graphs() -> None:
    """Nothing is captured on the CPU: the shared pool is None, and static graphs are not claimed."""
    assert CpuPlatform().get_global_graph_pool() is None
    assert not CpuPlatform.capabilities().static_graphs


OPERATIONS = [
    *("synchronize", "empty_cache", "current_device", "device_count", "current_stream"),
    *("mem_get_info", "memory_stats", "memory_allocated", "max_memory_allocated"),
    *("reset_peak_memory_stats", "inference_mode", "graph_pool_handle", "get_device_properties"),
]


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_is_answered_on_the_cpu(name: str) -> None:
    """No operation of the contract has to be left out by a program because it runs on the CPU."""
    getattr(CpuPlatform(), name)()


def test_cpu_seed() -> None:
    """Seeding makes the CPU's random numbers repeat."""
    CpuPlatform.manual_seed_all(7)
    first = torch.rand(3)
    CpuPlatform.manual_seed_all(7)
    assert torch.equal(first, torch.rand(3))


def test_cpu_inference_mode() -> None:
    """Inside the scope tensors are inference tensors."""
    with CpuPlatform.inference_mode():
        assert torch.ones(1).is_inference()


def test_cpu_dtypes() -> None:
    """The CPU takes 16-bit floats and float32, and refuses others by name."""
    assert [torch.bfloat16, torch.float16, torch.float32] == CpuPlatform().supported_dtypes
    CpuPlatform.check_if_supports_dtype(torch.bfloat16)
    with pytest.raises(ValueError, match=r"torch\.float64 was asked for.*bfloat16, float16"):
        CpuPlatform.check_if_supports_dtype(torch.float64)
    assert not CpuPlatform.supports_fp8()
    assert CpuPlatform.fp8_dtype() is torch.float8_e4m3fn


@pytest.mark.parametrize(
    ("config", "path"),
    [
        (None, "mainboard.kernels.backends.cpu.CpuAttentionBackend"),
        (
            types.SimpleNamespace(use_mla=False, use_sparse=False),
            "mainboard.kernels.backends.cpu.CpuAttentionBackend",
        ),
        (
            types.SimpleNamespace(use_mla=True),
            "mainboard.kernels.backends.latent.LatentAttentionBackend",
        ),
        (types.SimpleNamespace(use_mla=True, use_sparse=True), ""),
        (types.SimpleNamespace(use_sparse=True), ""),
    ],
)
def test_cpu_attention_backend(config: Any, path: str) -> None:
    """The CPU names its backend, and none for attention that it does not have."""
    assert path == CpuPlatform.get_attn_backend_cls(None, attn_selector_config=config, num_heads=8)

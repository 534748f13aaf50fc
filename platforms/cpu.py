"""The host's processor as a platform: always there, and the one that needs no driver."""

from __future__ import annotations

from functools import cache

from mainboard.light_typing import TYPE_CHECKING
from mainboard.platforms.cpu_features import read_processor
from mainboard.platforms.interface import Platform
from mainboard.platforms.machine import Machine, this_machine
from mainboard.platforms.probing import Activation, Decline, answer
from mainboard.platforms.torch_build import find_torch
from mainboard.platforms.values import Capabilities, MemoryInfo, PlatformEnum
from mainboard.platforms.verdict import Verdict

if TYPE_CHECKING:
    from typing import Any

    import torch

    from mainboard.platforms.cpu_facts import CpuFacts
    from mainboard.platforms.device_ops import Device

__all__ = ["CpuPlatform", "probe"]

_ATTENTION_BACKEND = "mainboard.kernels.backends.cpu.CpuAttentionBackend"


class CpuPlatform(Platform):
    """Tensors in host memory, computed by the host's cores."""

    _enum = PlatformEnum.CPU
    device_name = "cpu"
    device_type = "cpu"
    dispatch_key = "CPU"
    ray_device_key = ""
    dist_backend = "gloo"
    device_control_env_var = "CPU_VISIBLE_MEMORY_NODES"

    @classmethod
    def capabilities(cls, device_id: int = 0) -> Capabilities:
        """What this processor can do; 16-bit floats work on all, and are native to some."""
        return _capabilities()

    @classmethod
    def get_device_name(cls, device_id: int = 0) -> str:
        """The processor's model, or `cpu` where the system does not tell."""
        return _facts().processor.model or "cpu"

    @classmethod
    def get_device_total_memory(cls, device_id: int = 0) -> int:
        """The bytes of memory that this process can ever have."""
        return _facts().total_memory

    @classmethod
    def get_current_memory_usage(cls, device: torch.types.Device | None = None) -> float:
        """The bytes of memory that this process occupies, tensors and all else."""
        return float(cls.memory_allocated())

    @classmethod
    def num_compute_units(cls, device_id: int = 0) -> int:
        """How many threads to compute with."""
        return _facts().recommended_threads

    @classmethod
    def discover_numa_topology(cls) -> list[list[int]]:
        """The allowed processors of each NUMA node that has any."""
        topology = _facts().topology
        allowed = set(topology.allowed)
        nodes = ([cpu for cpu in node.cpus if cpu in allowed] for node in topology.nodes)
        return [cpus for cpus in nodes if cpus]

    @classmethod
    def is_pin_memory_available(cls) -> bool:
        """No: nothing is copied to another memory."""
        return False

    @classmethod
    def support_hybrid_kv_cache(cls) -> bool:
        """Yes: the cache is plain memory."""
        return True

    @classmethod
    def opaque_attention_op(cls) -> bool:
        """Yes: attention is one compiled operator."""
        return True

    @classmethod
    def get_attn_backend_cls(
        cls,
        selected_backend: Any,
        attn_selector_config: Any,
        num_heads: int | None = None,
    ) -> str:
        """Path of the attention backend; empty for sparse attention, which has none."""
        if getattr(attn_selector_config, "use_sparse", False):
            return ""
        if getattr(attn_selector_config, "use_mla", False):
            return "mainboard.kernels.backends.latent.LatentAttentionBackend"
        return _ATTENTION_BACKEND

    @classmethod
    def get_device_communicator_cls(cls) -> str:
        """Path of the class that runs collective operations over `torch.distributed`."""
        return "mainboard.platforms.communicator.DeviceCommunicator"

    # torch.cpu has these, but answers with a word or not at all.

    @classmethod
    def current_device(cls) -> int:
        """Always 0: all processors are one device."""
        return 0

    @classmethod
    def device_count(cls) -> int:
        """Always 1."""
        return 1

    @classmethod
    def set_device(cls, device: torch.device) -> None:
        """Nothing to choose."""

    @classmethod
    def empty_cache(cls) -> None:
        """Nothing to return: torch keeps no cache of host memory."""

    @classmethod
    def manual_seed_all(cls, seed: int) -> None:
        """Seed torch's generator of the CPU."""
        import torch

        torch.default_generator.manual_seed(seed)

    @classmethod
    def mem_get_info(cls, device: Device = None) -> MemoryInfo:
        """Bytes that this process can still have now, and in all."""
        return _facts().memory()

    @classmethod
    def memory_allocated(cls, device: Device = None) -> int:
        """The bytes of memory that this process occupies; torch does not count its own."""
        resident = _resident_memory()
        if resident is None:
            cls._not_offered("memory_allocated")
        return resident

    @classmethod
    def get_device_memory_info(cls, device_id: int = 0) -> MemoryInfo:
        """Bytes that this process can still have now, and in all."""
        return _facts().memory()

    @classmethod
    def max_memory_allocated(cls, device: Device = None) -> int:
        """The most bytes of memory that this process has occupied since the last reset."""
        peak = _peak_memory()
        if peak is None:
            cls._not_offered("max_memory_allocated")
        return peak

    @classmethod
    def reset_peak_memory_stats(cls, device: Device = None) -> None:
        """Start counting the most bytes from now, which the kernel does for this whole process."""
        try:
            with open(this_machine().path("proc/self/clear_refs"), "w", encoding="ascii") as file:
                file.write("5")
        except OSError as error:
            raise NotImplementedError(
                f"{cls.__name__}.reset_peak_memory_stats was asked for, but the kernel does not "
                f"reset its count here: {error}"
            ) from error

    @classmethod
    def graph_pool_handle(cls) -> Any:
        """None: nothing is captured, so nothing is shared between captures."""
        return None

    @classmethod
    def memory_stats(cls, device: Device = None) -> dict[str, Any]:
        """What the system counts, in bytes; what it does not count is left out."""
        resident, memory, peak = cls.memory_allocated(), cls.mem_get_info(), _peak_memory()
        return {
            "resident_bytes": resident,
            **({} if peak is None else {"peak_resident_bytes": peak}),
            "available_bytes": memory.free,
            "total_bytes": memory.total,
        }

    @classmethod
    def get_device_properties(cls, device: Device = None) -> Any:
        """The facts about this processor, a `CpuFacts`."""
        return _facts()

    @classmethod
    def describe(cls) -> dict[str, Any]:
        """Identity, capabilities and every fact about the processor, as plain JSON types."""
        return {**super().describe(), "cpu": _facts().to_dict()}


@cache
def _capabilities() -> Capabilities:
    facts = _facts()
    return Capabilities(
        native_dtypes=facts.native_dtypes,
        isa_features=facts.processor.features,
        integrated_memory=True,
    )


@cache
def _facts() -> CpuFacts:
    """Every fact about the processor, read when the first is asked for."""
    from mainboard.platforms.cpu_facts import cpu_facts

    return cpu_facts()


def probe(machine: Machine | None = None) -> Verdict:
    """Say that the CPU can be used; it always can, though tensors need an installed torch."""
    return answer("cpu", lambda: _examine(machine or this_machine()))


def _examine(machine: Machine) -> Activation:
    processor = read_processor(machine).model or machine.architecture
    reason, remedy = f"the host's processor ({processor}) is always there", None
    try:
        find_torch(machine)
    except Decline as no:
        reason, remedy = f"{reason}, but {no.reason}", no.remedy
    value = "mainboard.platforms.cpu.CpuPlatform"
    return Activation(value, "always_available", reason, remedy)


def _resident_memory() -> int | None:
    """The bytes of memory that this process occupies (at most, on macOS); None on Windows."""
    try:
        import resource
    except ImportError:
        return None
    pages = (this_machine().text("proc/self/statm") or "").split()
    if len(pages) > 1:
        return int(pages[1]) * resource.getpagesize()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if this_machine().system == "darwin" else peak * 1024


def _peak_memory() -> int | None:
    """The most bytes that this process has occupied, on Linux, where that can be reset."""
    for line in (this_machine().text("proc/self/status") or "").splitlines():
        if line.startswith("VmHWM:"):
            # The kernel notes a peak when memory falls; until then what is occupied is the most.
            return max(int(line.split()[1]) * 1024, _resident_memory() or 0)
    return None

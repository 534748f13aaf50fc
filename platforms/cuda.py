"""NVIDIA's devices as a platform.

Identity, generation and memory come from an inventory that NVML gave to a process of its own;
nothing here loads the driver into this process, or makes a CUDA context, until an operation on a
device does so through torch. Numbers of physical devices are NVML's (the order of the PCI bus).
"""

from __future__ import annotations

from mainboard.errors import PlatformUnavailableError
from mainboard.light_typing import TYPE_CHECKING
from mainboard.platforms import cuda_probe
from mainboard.platforms.cuda_inventory import (
    CudaDevice,
    Inventory,
    NvmlUnavailable,
    read_inventory,
)
from mainboard.platforms.cuda_probe import probe
from mainboard.platforms.interface import Platform
from mainboard.platforms.machine import this_machine
from mainboard.platforms.probing import Decline
from mainboard.platforms.values import Capabilities, DeviceCapability, PlatformEnum

if TYPE_CHECKING:
    from typing import Any, ClassVar

__all__ = [
    "CudaPlatform",
    "CudaPlatformBase",
    "NonNvmlCudaPlatform",
    "NvmlCudaPlatform",
    "probe",
]


class CudaPlatformBase(Platform):
    """What holds for every NVIDIA device, however it is asked about itself."""

    _enum = PlatformEnum.CUDA
    device_name = "cuda"
    device_type = "cuda"
    dispatch_key = "CUDA"
    ray_device_key = "GPU"
    dist_backend = "nccl"
    device_control_env_var = "CUDA_VISIBLE_DEVICES"
    ray_noset_device_env_vars: ClassVar[list[str]] = ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    @classmethod
    def visible_physical_ids(cls) -> list[int] | None:
        """Physical ids in the order of visible ids; None when `CUDA_VISIBLE_DEVICES` is unset."""
        entries = cuda_probe.visibility(this_machine().environ)
        if entries is None:
            return None
        return [cls.device_control_id_to_physical_device_id(entry) for entry in entries]

    @classmethod
    def capabilities(cls, device_id: int = 0) -> Capabilities:
        """What a device of this generation can do."""
        generation = cls.get_device_capability(device_id) or DeviceCapability(0, 0)
        dtypes = ["bfloat16"] if generation >= (8, 0) else []
        dtypes += ["float16"] if generation >= (6, 0) else []
        return Capabilities(
            dtypes=(*dtypes, "float32"),
            native_dtypes=(*dtypes, "float32"),
            fp8_formats=("float8_e4m3fn", "float8_e5m2") if generation >= (8, 9) else (),
            isa_features=frozenset({f"sm_{generation.major}{generation.minor}"}),
            pinned_memory=cls.is_pin_memory_available(),
            static_graphs=True,
        )

    @classmethod
    def num_compute_units(cls, device_id: int = 0) -> int:
        """The number of streaming multiprocessors; asking for it starts the device."""
        return int(cls.get_device_properties(device_id).multi_processor_count)

    @classmethod
    def support_static_graph_mode(cls) -> bool:
        """Yes: CUDA graphs."""
        return True

    @classmethod
    def support_hybrid_kv_cache(cls) -> bool:
        """Yes."""
        return True

    @classmethod
    def opaque_attention_op(cls) -> bool:
        """Yes: attention is one operator."""
        return True


class CudaPlatform(CudaPlatformBase):
    """NVIDIA's devices where NVML describes them: servers and desktops."""

    @classmethod
    def inventory(cls) -> Inventory:
        """Every device of this machine, asked for once per process.

        Raises:
            PlatformUnavailableError: the driver cannot be asked.
        """
        try:
            return read_inventory(this_machine())
        except (Decline, NvmlUnavailable) as no:
            raise PlatformUnavailableError(
                f"platform {cls.device_name!r} was asked for its devices, but {no.reason}; "
                f"{no.remedy or 'use NonNvmlCudaPlatform'}"
            ) from no

    @classmethod
    def _device(cls, device_id: int) -> CudaDevice:
        physical = cls.device_id_to_physical_device_id(device_id)
        devices = cls.inventory().devices
        for device in devices:
            if device.id == physical:
                return device
        have = ", ".join(f"{device.id} ({device.name})" for device in devices)
        raise IndexError(
            f"device {device_id} was asked for, which is physical device {physical}; "
            f"the working devices here are {have}"
        )

    @classmethod
    def visible_physical_ids(cls) -> list[int] | None:
        """Physical ids in the order of visible ids; None when `CUDA_VISIBLE_DEVICES` is unset."""
        entries = cuda_probe.visibility(this_machine().environ)
        return None if entries is None else cuda_probe.resolve_entries(entries, cls.inventory())

    @classmethod
    def device_control_id_to_physical_device_id(cls, device_id: str) -> int:
        """A number, or an id such as `GPU-8f5c…` or `MIG-…`, as a physical id.

        Raises:
            ValueError: no device, or more than one, is meant.
        """
        found = cuda_probe.resolve_entries([device_id], cls.inventory())
        if not found:
            have = ", ".join(f"{d.id} ({d.uuid})" for d in cls.inventory().devices)
            raise ValueError(f"{device_id!r} means no single device; the devices here are {have}")
        return found[0]

    @classmethod
    def device_count(cls) -> int:
        """How many devices are visible, without starting one."""
        visible = cls.visible_physical_ids()
        return len(cls.inventory().devices if visible is None else visible)

    @classmethod
    def get_device_capability(cls, device_id: int = 0) -> DeviceCapability | None:
        """The device's compute capability; None when no device is visible."""
        return cls._device(device_id).capability if cls.device_count() else None

    @classmethod
    def get_device_name(cls, device_id: int = 0) -> str:
        """The product name of a device."""
        return cls._device(device_id).name

    @classmethod
    def get_device_uuid(cls, device_id: int = 0) -> str:
        """The id of a device, as `nvidia-smi -L` prints it."""
        return cls._device(device_id).uuid

    @classmethod
    def get_device_total_memory(cls, device_id: int = 0) -> int:
        """The bytes of memory that a device has; the host's where it shares them."""
        memory = cls._device(device_id).memory
        return memory if memory is not None else _host_memory()

    @classmethod
    def get_all_gpu_pci_bus_ids(cls) -> dict[int, str]:
        """The PCI address of every device by its physical id."""
        return {device.id: device.pci for device in cls.inventory().devices}

    @classmethod
    def capabilities(cls, device_id: int = 0) -> Capabilities:
        """What a device of this generation can do."""
        shared = bool(cls.device_count()) and cls._device(device_id).memory is None
        return super().capabilities(device_id)._replace(integrated_memory=shared)

    @classmethod
    def log_warnings(cls) -> None:
        """Warn of unequal devices whose numbers differ between NVML and CUDA."""
        names = {device.name for device in cls.inventory().devices}
        order = this_machine().environ.get("CUDA_DEVICE_ORDER")
        if len(names) > 1 and order != "PCI_BUS_ID":
            import logging

            logging.getLogger(__name__).warning(
                "this machine has different devices (%s) and CUDA_DEVICE_ORDER is %r: CUDA numbers "
                "them by speed, all else by PCI address; set CUDA_DEVICE_ORDER=PCI_BUS_ID",
                ", ".join(sorted(names)),
                order,
            )

    @classmethod
    def describe(cls) -> dict[str, Any]:
        """Identity, capabilities and the inventory, as plain JSON types."""
        visible = {"visible": cls.visible_physical_ids()}
        return {**super().describe(), "cuda": {**cls.inventory().to_dict(), **visible}}


class NonNvmlCudaPlatform(CudaPlatformBase):
    """NVIDIA's devices where only torch can be asked, which starts them: Jetson, some WSL."""

    @classmethod
    def get_device_capability(cls, device_id: int = 0) -> DeviceCapability | None:
        """The device's compute capability."""
        found = cls._torch_member("get_device_capability")(device_id)
        return DeviceCapability(*found)

    @classmethod
    def get_device_name(cls, device_id: int = 0) -> str:
        """The product name of a device."""
        return str(cls._torch_member("get_device_name")(device_id))

    @classmethod
    def get_device_uuid(cls, device_id: int = 0) -> str:
        """The id of a device."""
        return f"GPU-{cls.get_device_properties(device_id).uuid}"

    @classmethod
    def get_device_total_memory(cls, device_id: int = 0) -> int:
        """The bytes of memory that a device has."""
        return int(cls.get_device_properties(device_id).total_memory)

    @classmethod
    def is_integrated_gpu(cls, device_id: int = 0) -> bool:
        """Whether the device uses the host's memory."""
        return bool(cls.get_device_properties(device_id).is_integrated)


NvmlCudaPlatform = CudaPlatform
"""The name that vLLM gives to `CudaPlatform`."""


def _host_memory() -> int:
    from mainboard.platforms.cpu_facts import cpu_facts

    return cpu_facts().total_memory

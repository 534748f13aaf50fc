"""AMD's devices as a platform; torch presents them through `torch.cuda`.

Identity, generation and memory are read from the kernel's files; no device is started until an
operation on it does so through torch. Inside Windows (WSL) the kernel has no such files, and
torch is asked.
"""

from __future__ import annotations

from mainboard.light_typing import TYPE_CHECKING
from mainboard.platforms import rocm_probe
from mainboard.platforms.interface import Platform
from mainboard.platforms.machine import this_machine
from mainboard.platforms.rocm_probe import RocmDevice, probe
from mainboard.platforms.values import Capabilities, DeviceCapability, PlatformEnum

if TYPE_CHECKING:
    from typing import Any, ClassVar

__all__ = ["RocmPlatform", "probe"]

# 8-bit floats: the first generation that has them has a kind of its own.
_FNUZ = ("float8_e4m3fnuz", "float8_e5m2fnuz")
_OCP = ("float8_e4m3fn", "float8_e5m2")
_FP8 = {"gfx942": _FNUZ, "gfx950": _OCP, "gfx1200": _OCP, "gfx1201": _OCP, "gfx1250": _OCP}


class RocmPlatform(Platform):
    """AMD's devices: Instinct accelerators, and Radeon cards that ROCm serves."""

    _enum = PlatformEnum.ROCM
    device_name = "rocm"
    device_type = "cuda"
    dispatch_key = "CUDA"
    ray_device_key = "GPU"
    dist_backend = "nccl"
    device_control_env_var = "CUDA_VISIBLE_DEVICES"
    ray_noset_device_env_vars: ClassVar[list[str]] = [
        "RAY_EXPERIMENTAL_NOSET_HIP_VISIBLE_DEVICES",
        "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES",
        "RAY_EXPERIMENTAL_NOSET_ROCR_VISIBLE_DEVICES",
    ]

    @classmethod
    def devices(cls) -> tuple[RocmDevice, ...]:
        """Every device of this machine that the kernel lists, read once per process."""
        return rocm_probe.read_devices(this_machine())

    @classmethod
    def _device(cls, device_id: int) -> RocmDevice | None:
        """The device of a logical id; None where the kernel lists no devices (WSL)."""
        devices = cls.devices()
        if not devices:
            return None
        physical = cls.device_id_to_physical_device_id(device_id)
        if physical not in range(len(devices)):
            raise IndexError(
                f"device {device_id} was asked for, which is physical device {physical}; "
                f"the devices here are {', '.join(f'{d.id} ({d.name})' for d in devices)}"
            )
        return devices[physical]

    @classmethod
    def visible_physical_ids(cls) -> list[int] | None:
        """Physical ids in the order of visible ids, after all three control variables."""
        devices = cls.devices()
        if not devices:
            return super().visible_physical_ids()
        return rocm_probe.visible_ids(this_machine().environ, devices)

    @classmethod
    def device_control_id_to_physical_device_id(cls, device_id: str) -> int:
        """A number, or an id such as `GPU-9d6b…`, as a physical id."""
        for device in cls.devices():
            if device.uuid and device.uuid.lower() == device_id.lower():
                return device.id
        return super().device_control_id_to_physical_device_id(device_id)

    @classmethod
    def device_count(cls) -> int:
        """How many devices are visible, without starting one."""
        visible = cls.visible_physical_ids() if cls.devices() else None
        return super().device_count() if visible is None else len(visible)

    @classmethod
    def get_device_capability(cls, device_id: int = 0) -> DeviceCapability | None:
        """The device's generation, (9, 4) for gfx942; None when no device is visible."""
        if not cls.device_count():
            return None
        device = cls._device(device_id)
        if device is not None:
            return device.capability
        return DeviceCapability(*cls._torch_member("get_device_capability")(device_id))

    @classmethod
    def get_device_name(cls, device_id: int = 0) -> str:
        """The product name of a device, or its architecture where there is no name."""
        device = cls._device(device_id)
        return device.name if device else str(cls._torch_member("get_device_name")(device_id))

    @classmethod
    def get_device_uuid(cls, device_id: int = 0) -> str:
        """The id of a device, as `ROCR_VISIBLE_DEVICES` takes it."""
        device = cls._device(device_id)
        return device.uuid if device else f"GPU-{cls.get_device_properties(device_id).uuid}"

    @classmethod
    def get_device_total_memory(cls, device_id: int = 0) -> int:
        """The bytes of memory that a device has."""
        device = cls._device(device_id)
        if device is not None and device.memory is not None:
            return device.memory
        return int(cls.get_device_properties(device_id).total_memory)

    @classmethod
    def get_all_gpu_pci_bus_ids(cls) -> dict[int, str]:
        """The PCI address of every device by its physical id."""
        return {device.id: device.pci for device in cls.devices()}

    @classmethod
    def num_compute_units(cls, device_id: int = 0) -> int:
        """The number of compute units; asking for it starts the device."""
        return int(cls.get_device_properties(device_id).multi_processor_count)

    @classmethod
    def capabilities(cls, device_id: int = 0) -> Capabilities:
        """What a device of this architecture can do."""
        device = cls._device(device_id) if cls.device_count() else None
        architecture = device.architecture if device else ""
        dtypes = ("bfloat16", "float16", "float32")
        return Capabilities(
            dtypes=dtypes,
            native_dtypes=dtypes,
            fp8_formats=_FP8.get(architecture, ()),
            isa_features=frozenset({architecture} if architecture else ()),
            integrated_memory=device is not None and device.memory is None,
            pinned_memory=cls.is_pin_memory_available(),
            static_graphs=True,
        )

    @classmethod
    def support_static_graph_mode(cls) -> bool:
        """Yes: HIP graphs."""
        return True

    @classmethod
    def support_hybrid_kv_cache(cls) -> bool:
        """Yes."""
        return True

    @classmethod
    def opaque_attention_op(cls) -> bool:
        """Yes: attention is one operator."""
        return True

    @classmethod
    def describe(cls) -> dict[str, Any]:
        """Identity, capabilities and the devices, as plain JSON types."""
        devices = [device.to_dict() for device in cls.devices()]
        return {
            **super().describe(),
            "rocm": {"devices": devices, "visible": cls.visible_physical_ids()},
        }

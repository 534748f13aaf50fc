"""AMD's devices as a platform; torch presents them through `torch.cuda`.

Identity, generation, memory and links are read from the kernel's files; no device is started until
an operation on it does so through torch. Inside Windows (WSL) the kernel has no such files, and
torch is asked.
"""

from __future__ import annotations

from functools import cache

from mainboard.light_typing import TYPE_CHECKING
from mainboard.platforms import rocm_devices
from mainboard.platforms.listed_devices import DeviceLink, ListedDevices
from mainboard.platforms.machine import this_machine
from mainboard.platforms.rocm_devices import RocmDevice
from mainboard.platforms.rocm_probe import probe
from mainboard.platforms.values import Capabilities, DeviceCapability, MemoryInfo, PlatformEnum

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, ClassVar

    from mainboard.platforms.machine import Machine

__all__ = ["RocmPlatform", "probe"]

# 8-bit floats: the first generation that has them has a kind of its own.
_FNUZ = ("float8_e4m3fnuz", "float8_e5m2fnuz")
_OCP = ("float8_e4m3fn", "float8_e5m2")
_FP8 = {
    "gfx940": _FNUZ,
    "gfx941": _FNUZ,
    "gfx942": _FNUZ,
    "gfx950": _OCP,
    "gfx1200": _OCP,
    "gfx1201": _OCP,
    "gfx1250": _OCP,
}
_MX = ("mxfp8_e4m3", "mxfp8_e5m2", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp4_e2m1")
_BLOCK_SCALED = {"gfx950": _MX, "gfx1250": _MX}


class RocmPlatform(ListedDevices):
    """AMD's devices: Instinct accelerators, and Radeon cards that ROCm serves."""

    _enum = PlatformEnum.ROCM
    device_name = "rocm"
    device_type = "cuda"
    dispatch_key = "CUDA"
    ray_device_key = "GPU"
    dist_backend = "nccl"
    device_control_env_var = "CUDA_VISIBLE_DEVICES"
    _controls = tuple(name.encode() for name in rocm_devices.CONTROLS)
    ray_noset_device_env_vars: ClassVar[list[str]] = [
        "RAY_EXPERIMENTAL_NOSET_HIP_VISIBLE_DEVICES",
        "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES",
        "RAY_EXPERIMENTAL_NOSET_ROCR_VISIBLE_DEVICES",
    ]

    @classmethod
    def devices(cls) -> tuple[RocmDevice, ...]:
        """Every device of this machine that the kernel lists, read once per process."""
        return rocm_devices.read_devices(cls._machine())

    @classmethod
    def _machine(cls) -> Machine:
        return this_machine()

    @classmethod
    def _listed(cls) -> Sequence[RocmDevice]:
        return cls.devices()

    @classmethod
    def _visible(cls) -> Sequence[RocmDevice]:
        devices = cls.devices()
        ids = rocm_devices.visible_ids(cls._machine().environ, devices)
        return [devices[index] for index in ids]

    @classmethod
    def _find(cls, device_id: int) -> Any:
        # Where the kernel lists none (WSL), None: then torch is asked.
        return super()._find(device_id) if cls.devices() else None

    @classmethod
    def _visible_ids(cls) -> list[int] | None:
        return super()._visible_ids() if cls.devices() else cls._from_control_variable()

    @classmethod
    def device_control_id_to_physical_device_id(cls, device_id: str) -> int:
        """A number, or an id such as `GPU-9d6b…`, as a physical id."""
        for device in cls.devices():
            if device.uuid and device.uuid.lower() == device_id.lower():
                return device.id
        return super().device_control_id_to_physical_device_id(device_id)

    @classmethod
    def _count(cls) -> int:
        if cls.devices():
            return super()._count()
        return int(cls._torch_member("device_count")())

    @classmethod
    def _read_capability(cls, device_id: int) -> DeviceCapability | None:
        if cls.devices():
            return super()._read_capability(device_id)
        if not cls.device_count():
            return None
        return DeviceCapability(*cls._torch_member("get_device_capability")(device_id))

    @classmethod
    def _read_name(cls, device_id: int) -> str:
        """The product name of a device, or its architecture where nobody knows a name.

        Where the kernel knows none, AMD's management library is asked, once and for a bounded time.
        """
        device = cls._device(device_id)
        if device is None:
            return str(cls._torch_member("get_device_name")(device_id))
        if device.name not in (device.architecture, "ip discovery"):
            return str(device.name)
        return _market_names(cls._machine()).get(device.pci) or str(device.architecture)

    @classmethod
    def get_device_uuid(cls, device_id: int = 0) -> str:
        """The id of a device, as `ROCR_VISIBLE_DEVICES` takes it."""
        device = cls._device(device_id)
        return device.uuid if device else f"GPU-{cls.get_device_properties(device_id).uuid}"

    @classmethod
    def get_device_total_memory(cls, device_id: int = 0) -> int:
        """The bytes of memory that a device has; the host's where it shares them."""
        if cls._device(device_id) is not None:
            return super().get_device_total_memory(device_id)
        return int(cls.get_device_properties(device_id).total_memory)

    @classmethod
    def get_device_memory_info(cls, device_id: int = 0) -> MemoryInfo:
        """The bytes of a device that are free now, and all, as the kernel counts them.

        Raises:
            NotImplementedError: for a part of a divided device, whose use nobody counts.
        """
        device = cls._device(device_id)
        if device is None or device.compute_mode not in ("", "SPX"):
            cls._not_offered("get_device_memory_info")
        if device.memory is None:
            return cls._host_memory()
        files = f"sys/bus/pci/devices/{device.pci}"
        used = cls._machine().number(f"{files}/mem_info_vram_used")
        if used is None:
            cls._not_offered("get_device_memory_info")
        return MemoryInfo(max(0, device.memory - used), device.memory)

    @classmethod
    def _read_compute_units(cls, device_id: int) -> int:
        device = cls._device(device_id)
        if device is not None:
            return int(device.compute_units)
        return int(cls.get_device_properties(device_id).multi_processor_count)

    @classmethod
    def _read_links(cls) -> tuple[DeviceLink, ...]:
        listed = rocm_devices.read_links(cls._machine())
        ways = {(link.first, link.second) for link in listed}
        xgmi = {(link.first, link.second) for link in listed if link.xgmi}
        count = len(cls.devices())
        return tuple(
            DeviceLink(
                first,
                second,
                "xgmi" if {(first, second), (second, first)} <= xgmi else "pcie",
                {(first, second), (second, first)} <= ways,
            )
            for first in range(count)
            for second in range(first + 1, count)
        )

    @classmethod
    def _capabilities(cls, device_id: int) -> Capabilities:
        device = cls._device(device_id) if cls.device_count() else None
        architecture = device.architecture if device else ""
        dtypes = ("bfloat16", "float16", "float32")
        return Capabilities(
            dtypes=dtypes,
            native_dtypes=dtypes,
            fp8_formats=_FP8.get(architecture, ()),
            block_scaled_formats=_BLOCK_SCALED.get(architecture, ()),
            isa_features=frozenset({architecture} if architecture else ()),
            integrated_memory=device is not None and device.memory is None,
            pinned_memory=cls.is_pin_memory_available(),
            static_graphs=True,
        )

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
        return "mainboard.kernels.backends.dispatched.DispatchedAttentionBackend"

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
        found = {
            "devices": [device.to_dict() for device in cls.devices()],
            "visible": cls.visible_physical_ids(),
            "links": [link._asdict() for link in cls.links()],
        }
        return {**super().describe(), "rocm": found}


@cache
def _market_names(machine: Machine) -> dict[str, str]:
    """Products by PCI address, as AMD's management library names them; none if it does not answer."""
    if machine.package("amdsmi") is None:
        return {}
    outcome = machine.ask("amdsmi_inventory", "devices", "amdsmi")
    lines = [line.split("\t") for line in (outcome.output or "").splitlines()]
    names = {fields[1]: fields[2] for fields in lines if len(fields) == 5 and fields[0] == "device"}
    if not names:
        from mainboard.plugins.log import get_logger

        said = outcome.problem or " ".join((outcome.output or "it says nothing").split())
        get_logger().warning("AMD's management library names no device: %s", said)
    return names

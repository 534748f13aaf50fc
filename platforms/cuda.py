"""NVIDIA's devices as a platform.

Identity, generation, memory and links come from NVML, or where there is none from CUDA's driver
library, asked in a process of its own; nothing here loads the driver into this process, or makes a
CUDA context, until an operation on a device does so through torch. Numbers of physical devices are
those of the order of the PCI bus.
"""

from __future__ import annotations

from mainboard.errors import PlatformUnavailableError
from mainboard.light_typing import TYPE_CHECKING
from mainboard.platforms import cuda_inventory
from mainboard.platforms.cuda_inventory import CudaDevice, Inventory, NvmlUnavailable
from mainboard.platforms.cuda_probe import probe
from mainboard.platforms.cuda_visible import CONTROL, find_entry, visibility, visible_devices
from mainboard.platforms.listed_devices import DeviceLink, ListedDevices
from mainboard.platforms.machine import this_machine
from mainboard.platforms.probing import Decline
from mainboard.platforms.values import Capabilities, DeviceCapability, MemoryInfo, PlatformEnum

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, ClassVar, TypeVar

    from mainboard.platforms.machine import Machine

    _Answer = TypeVar("_Answer")

__all__ = [
    "CudaPlatform",
    "CudaPlatformBase",
    "NonNvmlCudaPlatform",
    "NvmlCudaPlatform",
    "probe",
]

# NVML's levels of what is between two devices.
_ACROSS = {
    "0": "board",
    "10": "switch",
    "20": "switches",
    "30": "host bridge",
    "40": "numa node",
    "50": "system",
}


class CudaPlatformBase(ListedDevices):
    """NVIDIA's devices, however the driver is asked about them."""

    _enum = PlatformEnum.CUDA
    device_name = "cuda"
    device_type = "cuda"
    dispatch_key = "CUDA"
    ray_device_key = "GPU"
    dist_backend = "nccl"
    device_control_env_var = CONTROL
    _controls = (CONTROL.encode(),)
    ray_noset_device_env_vars: ClassVar[list[str]] = ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    @classmethod
    def inventory(cls) -> Inventory:
        """Every device of this machine, asked for once per process: of NVML, or of CUDA.

        Raises:
            PlatformUnavailableError: the driver cannot be asked.
        """
        return cls._asked("its devices", lambda: _either_inventory(cls._machine()))

    @classmethod
    def _asked(cls, what: str, question: Callable[[], _Answer]) -> _Answer:
        """An answer of the driver, or the error that a caller can be shown."""
        try:
            return question()
        except (Decline, NvmlUnavailable) as no:
            raise PlatformUnavailableError(
                f"platform {cls.device_name!r} was asked for {what}, but {no.reason}; "
                f"{no.remedy or 'see `mainboard doctor`'}"
            ) from no
        except (ValueError, LookupError) as error:
            raise PlatformUnavailableError(
                f"platform {cls.device_name!r} was asked for {what}, but the driver answers what "
                f"cannot be read: {error}; see `nvidia-smi` and the kernel's log"
            ) from error

    @classmethod
    def _machine(cls) -> Machine:
        return this_machine()

    @classmethod
    def _listed(cls) -> Sequence[CudaDevice]:
        return cls.inventory().devices

    @classmethod
    def _visible(cls) -> Sequence[CudaDevice]:
        return visible_devices(visibility(cls._machine().environ), cls.inventory())

    @classmethod
    def device_control_id_to_physical_device_id(cls, device_id: str) -> int:
        """A number, or an id such as `GPU-8f5c…` or `MIG-…`, as a physical id.

        Raises:
            ValueError: no device, or more than one, is meant.
        """
        found = find_entry(device_id, cls.inventory())
        if found is None:
            have = ", ".join(f"{d.id} ({d.uuid})" for d in cls.inventory().devices)
            raise ValueError(f"{device_id!r} means no single device; the devices here are {have}")
        return found

    @classmethod
    def get_device_memory_info(cls, device_id: int = 0) -> MemoryInfo:
        """The bytes of a device, or of its slice, that are free now, and all; starts nothing.

        Each call asks NVML in a process of its own, which takes tens of milliseconds.

        Raises:
            NotImplementedError: NVML is not here, and nothing else knows without a context.
        """
        device = cls._device(device_id)
        if device.memory is None:
            return cls._host_memory()
        known = cls._asked("free memory", lambda: _read_memory(cls._machine()))
        if device.uuid not in known:
            cls._not_offered("get_device_memory_info")
        return known[device.uuid]

    @classmethod
    def _read_links(cls) -> tuple[DeviceLink, ...]:
        if len(cls._listed()) < 2:
            return ()
        return cls._asked("its links", lambda: tuple(map(_link, _either_links(cls._machine()))))

    @classmethod
    def _read_compute_units(cls, device_id: int) -> int:
        """The number of streaming multiprocessors.

        A device that the driver does not list beside a divided one is started by asking.
        """
        device = cls._device(device_id)
        if device.multiprocessors is not None:
            return int(device.multiprocessors)
        known = cls._asked("its multiprocessors", lambda: _read_multiprocessors(cls._machine()))
        if device.uuid not in known:
            visible = cls.logical_device_id_to_visible_device_id(device_id)
            return int(cls.get_device_properties(visible).multi_processor_count)
        return known[device.uuid]

    @classmethod
    def _capabilities(cls, device_id: int) -> Capabilities:
        known = cls.get_device_capability(device_id)
        generation = known or DeviceCapability(0, 0)
        dtypes = ["bfloat16"] if generation >= (8, 0) else []
        dtypes += ["float16"] if generation >= (6, 0) else []
        return Capabilities(
            dtypes=(*dtypes, "float32"),
            native_dtypes=(*dtypes, "float32"),
            fp8_formats=("float8_e4m3fn", "float8_e5m2") if generation >= (8, 9) else (),
            block_scaled_formats=_BLOCK_SCALED if generation >= (10, 0) else (),
            isa_features=frozenset({f"sm_{generation.major}{generation.minor}"} if known else ()),
            integrated_memory=known is not None and cls._device(device_id).memory is None,
            pinned_memory=cls.is_pin_memory_available(),
            static_graphs=True,
            bulk_copies=generation >= (9, 0),
            thread_block_clusters=generation >= (9, 0),
        )

    @classmethod
    def versions(cls) -> dict[str, str | None]:
        """Versions of the driver, of the newest CUDA that it runs, and of torch's CUDA."""
        from mainboard.platforms.torch_build import find_torch

        found = cls.inventory()
        runs = found.cuda and ".".join(map(str, found.cuda))
        try:
            built = find_torch(cls._machine()).cuda
        except Decline:
            built = None
        return {"driver": found.driver or None, "driver_cuda": runs, "torch_cuda": built}

    @classmethod
    def is_arch_support_pdl(cls) -> bool:
        """Whether a kernel may start before the one it depends on has ended: since Hopper."""
        return cls.has_device_capability((9, 0))

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

    @classmethod
    def log_warnings(cls) -> None:
        """Warn of unequal devices whose numbers differ between NVML and CUDA."""
        names = {device.name for device in cls.inventory().devices}
        order = cls._machine().environ.get("CUDA_DEVICE_ORDER")
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
        found = {**cls.inventory().to_dict(), "versions": cls.versions()}
        links = [link._asdict() for link in cls.links()]
        visible = {"visible": cls.visible_physical_ids(), "links": links}
        return {**super().describe(), "cuda": {**found, **visible}}


class CudaPlatform(CudaPlatformBase):
    """NVIDIA's devices where NVML describes them: servers and desktops."""


class NonNvmlCudaPlatform(CudaPlatformBase):
    """NVIDIA's devices where only CUDA's driver library can be asked: Jetson, some WSL."""

    @classmethod
    def inventory(cls) -> Inventory:
        """Every device of this machine, asked of CUDA in a process of its own, once."""
        return cls._asked("its devices", lambda: _ask_cuda(cls._machine())[0])


NvmlCudaPlatform = CudaPlatform
"""The name that vLLM gives to `CudaPlatform`."""

_BLOCK_SCALED = ("mxfp8_e4m3", "mxfp8_e5m2", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp4_e2m1", "nvfp4")


def _either_inventory(machine: Machine) -> Inventory:
    try:
        return cuda_inventory.read_inventory(machine)
    except NvmlUnavailable:
        return _ask_cuda(machine)[0]


def _either_links(machine: Machine) -> list[list[str]]:
    try:
        return _ask_nvml(machine, "links").get("link", [])
    except NvmlUnavailable:
        return _ask_cuda(machine)[1].get("link", [])


def _ask_nvml(machine: Machine, question: str) -> dict[str, list[list[str]]]:
    """The answer to a question that is not about which devices there are."""
    cuda_inventory.read_inventory(machine)  # which says best why NVML cannot be asked
    return cuda_inventory.answer_lines(machine.ask("nvml_inventory", question))


def _ask_cuda(machine: Machine) -> tuple[Inventory, dict[str, list[list[str]]]]:
    return cuda_inventory.read_driver_inventory(machine)


def _read_memory(machine: Machine) -> dict[str, MemoryInfo]:
    """Free and total bytes by the id of each device and slice, now."""
    rows = _ask_nvml(machine, "memory").get("memory", ())
    return {uuid: MemoryInfo(int(free), int(total)) for uuid, free, total in rows}


def _read_multiprocessors(machine: Machine) -> dict[str, int]:
    """The number of multiprocessors by the id of each device that CUDA lists."""
    _, rows = _ask_cuda(machine)
    counts = {fields[0]: int(fields[1]) for fields in rows.get("facts", ())}
    return {fields[2]: counts[fields[0]] for fields in rows.get("device", ())}


def _link(fields: Sequence[str]) -> DeviceLink:
    first, second, nvlink, peer, level = fields
    across = _ACROSS.get(level, "")
    return DeviceLink(int(first), int(second), nvlink or "pcie", bool(peer), across)

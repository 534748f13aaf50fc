"""The contract between a program and a platform.

`Platform` is identity and facts; the work on devices is in `DeviceOperations`, the meaning of
device numbers in `DeviceIds`, and what only an inference engine asks for in `EngineHooks`. Names,
arguments and defaults are those of vLLM 0.33's class wherever platform packages override them,
so a class body written for that base works on this one. A platform must set `_enum`,
`device_name` and `device_type`; everything else has a default that its docstring states.
"""

from __future__ import annotations

from mainboard.light_typing import TYPE_CHECKING
from mainboard.platforms.device_ids import (
    DeviceIds,
    get_assigned_physical_gpu_ids,
    set_assigned_physical_gpu_ids,
)
from mainboard.platforms.device_ops import DeviceOperations
from mainboard.platforms.engine_hooks import EngineHooks
from mainboard.platforms.machine import this_machine
from mainboard.platforms.values import (
    Capabilities,
    CpuArchEnum,
    DeviceCapability,
    MemoryInfo,
    PlatformEnum,
    cpu_architecture,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, ClassVar, NoReturn

    import torch

__all__ = [
    "PLATFORM_API_VERSION",
    "Capabilities",
    "CpuArchEnum",
    "DeviceCapability",
    "MemoryInfo",
    "Platform",
    "PlatformEnum",
    "UnspecifiedPlatform",
    "get_assigned_physical_gpu_ids",
    "in_wsl",
    "set_assigned_physical_gpu_ids",
]

# Reading a member from its enumeration takes longer than the questions below.
_CUDA, _ROCM, _TPU, _XPU = (
    PlatformEnum.CUDA,
    PlatformEnum.ROCM,
    PlatformEnum.TPU,
    PlatformEnum.XPU,
)
_CPU, _OOT, _UNSPECIFIED = PlatformEnum.CPU, PlatformEnum.OOT, PlatformEnum.UNSPECIFIED

PLATFORM_API_VERSION = (1, 1)
"""Major: something promised went or changed. Minor: something optional was added."""


def in_wsl() -> bool:
    """Whether this is Linux inside Windows (WSL)."""
    return this_machine().in_wsl


class Platform(DeviceOperations, DeviceIds, EngineHooks):
    """One kind of device, as the rest of a program sees it."""

    _enum: PlatformEnum = PlatformEnum.UNSPECIFIED
    device_name: str = ""
    """What people call the platform, `cuda` for example."""
    device_type: str = ""
    """The type of its `torch.device`, and so the name of its module in torch."""
    dispatch_key: str = "CPU"
    """The dispatch key under which its operators are registered with torch."""
    ray_device_key: str = ""
    """What Ray calls such a device; empty says that Ray has no name for it."""
    device_control_env_var: str = "VLLM_DEVICE_CONTROL_ENV_VAR_PLACEHOLDER"
    """The environment variable that chooses visible devices; the default is read by nobody."""
    simple_compile_backend: str = "inductor"
    """The `torch.compile` backend for small functions."""
    dist_backend: str = ""
    """The `torch.distributed` backend; empty says none."""
    supported_quantization: ClassVar[list[str]] = []
    """Methods of quantization that work; empty says that there is no list."""

    _global_graph_pool: ClassVar[Any | None] = None

    # Which platform this is. For code written elsewhere; ask for capabilities instead.

    def is_cuda(self) -> bool:
        """Whether this is NVIDIA's platform."""
        return self._enum is _CUDA

    def is_rocm(self) -> bool:
        """Whether this is AMD's platform."""
        return self._enum is _ROCM

    def is_tpu(self) -> bool:
        """Whether this is Google's platform."""
        return self._enum is _TPU

    def is_xpu(self) -> bool:
        """Whether this is Intel's GPU platform."""
        return self._enum is _XPU

    def is_cpu(self) -> bool:
        """Whether this is the host's processor."""
        return self._enum is _CPU

    def is_zen_cpu(self) -> bool:
        """Whether this is a processor served by AMD's own CPU library; the default is no."""
        return False

    def is_out_of_tree(self) -> bool:
        """Whether a package declares this platform as its own kind (`PlatformEnum.OOT`)."""
        return self._enum is _OOT

    def is_unspecified(self) -> bool:
        """Whether no platform was chosen."""
        return self._enum is _UNSPECIFIED

    def is_cuda_alike(self) -> bool:
        """Whether torch presents the device through `torch.cuda`."""
        return self._enum is _CUDA or self._enum is _ROCM

    def uses_host_device_handling(self) -> bool:
        """Whether tensors stay on the host while the device works; the default is no."""
        return self.is_tpu()

    # What the devices can do.

    @classmethod
    def capabilities(cls, device_id: int = 0) -> Capabilities:
        """What a device can do; the default is the cautious one of every field."""
        return Capabilities()

    @property
    def supported_dtypes(self) -> list[torch.dtype]:
        """The dtypes that work, the preferred one first."""
        import torch

        return [getattr(torch, name) for name in self.capabilities().dtypes]

    @classmethod
    def check_if_supports_dtype(cls, dtype: torch.dtype) -> None:
        """Refuse a dtype that does not work here.

        Raises:
            ValueError: the dtype is not among the platform's capabilities.
        """
        dtypes = cls.capabilities().dtypes
        if str(dtype).removeprefix("torch.") not in dtypes:
            raise ValueError(
                f"{dtype} was asked for, but platform {cls.device_name!r} supports "
                f"{', '.join(dtypes)}; convert to one of them"
            )

    @classmethod
    def get_device_capability(cls, device_id: int = 0) -> DeviceCapability | None:
        """The device's generation, without starting the device; None where there is no such."""
        return None

    @classmethod
    def has_device_capability(cls, capability: tuple[int, int] | int, device_id: int = 0) -> bool:
        """Whether the device's generation is `capability` or later."""
        current = cls.get_device_capability(device_id)
        return current is not None and tuple(current) >= _as_pair(capability)

    @classmethod
    def is_device_capability(cls, capability: tuple[int, int] | int, device_id: int = 0) -> bool:
        """Whether the device's generation is exactly `capability`."""
        current = cls.get_device_capability(device_id)
        return current is not None and tuple(current) == _as_pair(capability)

    @classmethod
    def is_device_capability_family(cls, capability: int, device_id: int = 0) -> bool:
        """Whether the device's major generation is that of `capability`, such as 90."""
        current = cls.get_device_capability(device_id)
        return current is not None and current.major == capability // 10

    @classmethod
    def supports_fp8(cls) -> bool:
        """Whether the device computes with 8-bit floats."""
        return bool(cls.capabilities().fp8_formats)

    @classmethod
    def is_fp8_fnuz(cls) -> bool:
        """Whether those are of the kind without infinities and negative zero."""
        return "float8_e4m3fnuz" in cls.capabilities().fp8_formats

    @classmethod
    def fp8_dtype(cls) -> torch.dtype:
        """The 8-bit float to prefer."""
        import torch

        return torch.float8_e4m3fnuz if cls.is_fp8_fnuz() else torch.float8_e4m3fn

    @classmethod
    def supports_mx(cls) -> bool:
        """Whether the device computes with block-scaled (MX) formats."""
        return bool(cls.capabilities().block_scaled_formats)

    @classmethod
    def get_infinity_values(cls, dtype: torch.dtype) -> tuple[float, float]:
        """What stands for minus and plus infinity in masks."""
        return float("-inf"), float("inf")

    @classmethod
    def is_integrated_gpu(cls, device_id: int = 0) -> bool:
        """Whether the device uses the host's memory."""
        return cls.capabilities(device_id).integrated_memory

    @classmethod
    def is_pin_memory_available(cls) -> bool:
        """Whether page-locked host memory can be had; the default is yes outside WSL."""
        return not in_wsl()

    @classmethod
    def verify_quantization(cls, quant: str) -> None:
        """Refuse a method of quantization that is neither listed nor registered by a plugin.

        Raises:
            ValueError: the platform lists what it supports, and not this.
        """
        if cls.supported_quantization and quant not in cls.supported_quantization:
            from mainboard.plugins.vllm_names.quantization import is_registered

            if is_registered(quant):
                return
            raise ValueError(
                f"quantization {quant!r} was asked for, but platform {cls.device_name!r} "
                f"supports {', '.join(cls.supported_quantization)}"
            )

    # The devices there are. None of these may start a device.

    @classmethod
    def get_device_name(cls, device_id: int = 0) -> str:
        """The product name of a device."""
        cls._not_offered("get_device_name")

    @classmethod
    def get_device_uuid(cls, device_id: int = 0) -> str:
        """An id of the device that no other device has."""
        cls._not_offered("get_device_uuid")

    @classmethod
    def get_device_total_memory(cls, device_id: int = 0) -> int:
        """The bytes of memory that a device has."""
        cls._not_offered("get_device_total_memory")

    @classmethod
    def get_device_memory_info(cls, device_id: int = 0) -> MemoryInfo:
        """The bytes of a device that are free now, and all, without starting the device."""
        cls._not_offered("get_device_memory_info")

    @classmethod
    def get_all_gpu_pci_bus_ids(cls) -> dict[int, str]:
        """The PCI address of every device by its physical id."""
        cls._not_offered("get_all_gpu_pci_bus_ids")

    @classmethod
    def get_current_memory_usage(cls, device: torch.types.Device | None = None) -> float:
        """The bytes of device memory in use by this process's tensors."""
        return float(cls.memory_allocated(device))

    @classmethod
    def is_fully_connected(cls, physical_device_ids: Sequence[int]) -> bool:
        """Whether each pair of these devices has a direct link; the default is no."""
        return False

    @classmethod
    def num_compute_units(cls, device_id: int = 0) -> int:
        """How many units compute at the same time: multiprocessors, or cores."""
        cls._not_offered("num_compute_units")

    @classmethod
    def get_cpu_architecture(cls) -> CpuArchEnum:
        """The architecture of the host's processor."""
        return cpu_architecture(this_machine().architecture)

    # Attention.

    @classmethod
    def get_attn_backend_cls(
        cls,
        selected_backend: Any,
        attn_selector_config: Any,
        num_heads: int | None = None,
    ) -> str:
        """Path of the attention backend's class; empty, the default, says none."""
        return ""

    def get_global_graph_pool(self) -> Any:
        """The memory pool that all captured graphs of this platform share."""
        cls = type(self)
        if cls._global_graph_pool is None:
            cls._global_graph_pool = self.graph_pool_handle()
        return cls._global_graph_pool

    @classmethod
    def describe(cls) -> dict[str, Any]:
        """The platform's identity and capabilities as plain JSON types."""
        return {
            "platform": f"{cls.__module__}.{cls.__qualname__}",
            "api_version": ".".join(map(str, PLATFORM_API_VERSION)),
            "device_name": cls.device_name,
            "device_type": cls.device_type,
            "dispatch_key": cls.dispatch_key,
            "dist_backend": cls.dist_backend,
            "device_control_env_var": cls.device_control_env_var,
            "capabilities": cls.capabilities().to_dict(),
        }

    @classmethod
    def _not_offered(cls, name: str) -> NoReturn:
        raise NotImplementedError(
            f"{cls.__name__}.{name} was asked for; platform {cls.device_name!r} does not offer it"
        )

    def __getattr__(self, name: str) -> Any:
        # Python comes here also when a property raised AttributeError; that one must be seen.
        if any(name in base.__dict__ for base in type(self).__mro__):
            return object.__getattribute__(self, name)
        message = f"platform {type(self).__name__!r} has no attribute {name!r}"
        if not name.startswith("_"):
            message += _suggestion(name, type(self))
        raise AttributeError(message, name=name, obj=self)

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {self.device_name!r}: device type {self.device_type!r}, "
            f"dispatch key {self.dispatch_key!r}>"
        )


class UnspecifiedPlatform(Platform):
    """No platform: for tests, and for code that must have an object before one is chosen."""

    device_name = "unspecified"


def _as_pair(capability: tuple[int, int] | int) -> tuple[int, int]:
    """`90` and `(9, 0)` are the same capability."""
    return divmod(capability, 10) if isinstance(capability, int) else capability


def _suggestion(name: str, cls: type) -> str:
    """The public names of `cls` that look like `name`, as the end of a sentence."""
    from difflib import get_close_matches

    public = [known for known in dir(cls) if not known.startswith("_")]
    close = get_close_matches(name, public, n=3)
    return f"; close to it are {', '.join(close)}" if close else ""

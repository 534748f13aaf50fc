"""What a program does with a device, each handed on to `torch.<device_type>`.

Nothing here imports torch until an operation is called. A platform whose torch module lacks an
operation overrides the method; until then calling it says what is missing.
"""

from __future__ import annotations

from types import ModuleType

from mainboard.errors import PlatformUnavailableError
from mainboard.light_typing import TYPE_CHECKING
from mainboard.platforms.values import MemoryInfo

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from typing import Any, TypeAlias

    import torch

    Device: TypeAlias = torch.device | int | str | None

__all__ = ["DeviceOperations"]


class _TorchClass:
    """A class of the platform's torch module, read from the platform's class or an object."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name
        self.__doc__ = f"The class `{name}` of the platform's torch module."

    def __get__(self, instance: object, owner: type[DeviceOperations]) -> Any:
        if instance is None and not owner.device_type:
            return self  # a base class of platforms, looked at by tools
        try:
            return owner._torch_member(self._name)
        except NotImplementedError as error:
            raise AttributeError(str(error), name=self._name, obj=instance) from None


class DeviceOperations:
    """Explicit delegates; every one has the name and arguments it has in `torch.cuda`."""

    device_name: str
    device_type: str

    @classmethod
    def torch_device_module(cls) -> ModuleType:
        """The torch module of this platform's devices, `torch.cuda` for example.

        Raises:
            PlatformUnavailableError: torch has no module of that name.
        """
        import torch

        # Not torch.get_device_module(): that initialises the device, which breaks a later fork.
        module = getattr(torch, cls.device_type, None) if cls.device_type else None
        if not isinstance(module, ModuleType):
            raise PlatformUnavailableError(
                f"platform {cls.device_name!r} was asked for its torch module, but torch "
                f"{torch.__version__} has no torch.{cls.device_type or '<device_type is empty>'}; "
                "install the torch build or extension that provides this device"
            )
        return module

    @classmethod
    def _torch_member(cls, name: str) -> Any:
        module = cls.torch_device_module()
        try:
            return getattr(module, name)
        except AttributeError:
            raise NotImplementedError(
                f"{cls.__name__}.{name} was asked for, but {module.__name__} has no {name!r}; "
                f"a platform with its own overrides {name}"
            ) from None

    @classmethod
    def synchronize(cls, device: Device = None) -> None:
        """Wait until all work given to the device is done."""
        cls._torch_member("synchronize")(device)

    @classmethod
    def empty_cache(cls) -> None:
        """Return memory that torch's allocator holds without using it."""
        cls._torch_member("empty_cache")()

    @classmethod
    def current_device(cls) -> int:
        """The visible id of the device that new work goes to."""
        number: int = cls._torch_member("current_device")()
        return number

    @classmethod
    def device_count(cls) -> int:
        """How many devices are visible."""
        number: int = cls._torch_member("device_count")()
        return number

    @classmethod
    def set_device(cls, device: torch.device) -> None:
        """Send new work of this thread to `device`."""
        cls._torch_member("set_device")(device)

    Stream = _TorchClass()
    Event = _TorchClass()

    @classmethod
    def current_stream(cls, device: Device = None) -> torch.Stream:
        """The stream that new work of this thread goes to."""
        stream: torch.Stream = cls._torch_member("current_stream")(device)
        return stream

    @classmethod
    def stream(cls, stream: torch.Stream | None) -> AbstractContextManager[Any]:
        """A scope whose work goes to `stream`."""
        block: AbstractContextManager[Any] = cls._torch_member("stream")(stream)
        return block

    @classmethod
    def mem_get_info(cls, device: Device = None) -> MemoryInfo:
        """Free and total bytes of the device's memory."""
        return MemoryInfo(*cls._torch_member("mem_get_info")(device))

    @classmethod
    def memory_stats(cls, device: Device = None) -> dict[str, Any]:
        """What torch's allocator counts, by name."""
        return dict(cls._torch_member("memory_stats")(device))

    @classmethod
    def memory_allocated(cls, device: Device = None) -> int:
        """Bytes that tensors occupy on the device."""
        number: int = cls._torch_member("memory_allocated")(device)
        return number

    @classmethod
    def max_memory_allocated(cls, device: Device = None) -> int:
        """The most bytes that tensors have occupied since the last reset."""
        number: int = cls._torch_member("max_memory_allocated")(device)
        return number

    @classmethod
    def reset_peak_memory_stats(cls, device: Device = None) -> None:
        """Start counting the most bytes from now."""
        cls._torch_member("reset_peak_memory_stats")(device)

    @classmethod
    def get_device_properties(cls, device: Device = None) -> Any:
        """What torch says of the device: an object whose attributes depend on the vendor."""
        return cls._torch_member("get_device_properties")(device)

    @classmethod
    def manual_seed_all(cls, seed: int) -> None:
        """Seed the random generator of every visible device."""
        cls._torch_member("manual_seed_all")(seed)

    @classmethod
    def inference_mode(cls) -> AbstractContextManager[Any]:
        """A scope without autograd; platforms that cannot do it return `torch.no_grad()`."""
        import torch

        return torch.inference_mode(mode=True)

    @classmethod
    def graph_pool_handle(cls) -> Any:
        """A new memory pool to share between captured graphs."""
        return cls._torch_member("graph_pool_handle")()

    @classmethod
    def cudart(cls) -> Any:
        """The CUDA runtime's functions, on platforms that have them."""
        return cls._torch_member("cudart")()

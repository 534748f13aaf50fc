"""Backends for the first pass of latent attention, registered by name."""

from collections.abc import Callable
from enum import Enum, EnumMeta
from importlib import import_module
from typing import Any, TypeVar

__all__ = ["MLAPrefillBackendEnum", "register_mla_prefill_backend"]

Class = TypeVar("Class", bound=type)


class _ByName(EnumMeta):
    """An enumeration whose error for an unknown name lists the known ones."""

    def __getitem__(cls, name: str) -> Any:
        try:
            return super().__getitem__(name)
        except KeyError:
            raise ValueError(
                f"no backend for the first pass of latent attention is called {name!r}; there are"
                f" {', '.join(cls.__members__)}"
            ) from None


class MLAPrefillBackendEnum(Enum, metaclass=_ByName):
    """The names; those but CUSTOM are vLLM's own, whose classes come with vLLM."""

    FLASH_ATTN = "flash_attn.FlashAttnPrefillBackend"
    FLASHINFER = "flashinfer.FlashInferPrefillBackend"
    TRTLLM_RAGGED = "trtllm_ragged.TrtllmRaggedPrefillBackend"
    TOKENSPEED_MLA = "tokenspeed_mla.TokenspeedMLAPrefillBackend"
    ROCM_AITER_FA = "aiter_flash_attn.AiterFlashAttnPrefillBackend"
    CPU = "cpu_sdpa.CPUSDPAMLAPrefillBackend"
    ZEN_CPU = "zen_cpu_sdpa.ZenCPUSDPAMLAPrefillBackend"
    CUSTOM = None

    def get_path(self) -> str:
        """Where the class is.

        Raises:
            ValueError: nothing is registered under CUSTOM.
        """
        if self in _registered:
            return _registered[self]
        if self.value is None:
            raise ValueError(
                f"{self.name} has no backend yet; register one with"
                f" register_mla_prefill_backend(MLAPrefillBackendEnum.{self.name}, path)"
            )
        return f"vllm.v1.attention.backends.mla.prefill.{self.value}"

    def get_class(self) -> type[Any]:
        """The class, imported now."""
        module, _, name = self.get_path().rpartition(".")
        found: type[Any] = getattr(import_module(module), name)
        return found

    def is_overridden(self) -> bool:
        """Whether a package has registered its own class under this name."""
        return self in _registered

    def clear_override(self) -> None:
        """Forget that class."""
        _registered.pop(self, None)


_registered: dict[MLAPrefillBackendEnum, str] = {}


def register_mla_prefill_backend(
    backend: MLAPrefillBackendEnum | str, class_path: str | None = None
) -> Callable[[Class], Class]:
    """Let a name stand for a class: by its path, or as a decorator of the class.

    Args:
        backend: a member, or its name.
        class_path: `package.module.Class`; without it, the decorated class is meant.
    """
    member = MLAPrefillBackendEnum[backend] if isinstance(backend, str) else backend
    if class_path is not None:
        _registered[member] = class_path

    def register(cls: Class) -> Class:
        if class_path is None:
            _registered[member] = f"{cls.__module__}.{cls.__qualname__}"
        return cls

    return register

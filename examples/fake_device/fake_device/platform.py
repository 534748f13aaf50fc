"""The platform: facts that start nothing, and the device's module for the rest."""

from __future__ import annotations

import os
from typing import Any

from fake_device import visible
from mainboard.platforms.interface import Platform
from mainboard.platforms.values import Capabilities, DeviceCapability, PlatformEnum

__all__ = ["FakePlatform"]

_DEFAULT_MIB = 256


class FakePlatform(Platform):
    """Devices that are threads and memory of this process, behind a device's manners."""

    _enum = PlatformEnum.OOT
    device_name = "fake"
    device_type = "fake"
    dispatch_key = "PrivateUse1"
    device_control_env_var = "FAKE_VISIBLE_DEVICES"
    dist_backend = "gloo"

    @classmethod
    def capabilities(cls, device_id: int = 0) -> Capabilities:
        """The operators' dtypes, 8-bit caches, and memory that is not the host's."""
        return Capabilities(
            dtypes=("bfloat16", "float16", "float32"),
            fp8_formats=("float8_e4m3fn", "float8_e5m2"),
            pinned_memory=True,
        )

    @classmethod
    def device_count(cls) -> int:
        """How many devices are visible."""
        return len(visible())

    @classmethod
    def get_device_name(cls, device_id: int = 0) -> str:
        """The name that is printed on the device."""
        return f"Fake Device {cls._physical(device_id)}"

    @classmethod
    def get_device_uuid(cls, device_id: int = 0) -> str:
        """The id of the device, wherever it is plugged in."""
        return f"FAKE-{cls._physical(device_id):08x}"

    @classmethod
    def get_device_total_memory(cls, device_id: int = 0) -> int:
        """`FAKE_DEVICE_MEMORY` in MiB, 256 by default."""
        cls._physical(device_id)
        return int(os.environ.get("FAKE_DEVICE_MEMORY") or _DEFAULT_MIB) << 20

    @classmethod
    def get_device_capability(cls, device_id: int = 0) -> DeviceCapability:
        """The first generation."""
        return DeviceCapability(1, 0)

    @classmethod
    def num_compute_units(cls, device_id: int = 0) -> int:
        """One: a stream is one thread."""
        return 1

    @classmethod
    def get_attn_backend_cls(
        cls, selected_backend: Any, attn_selector_config: Any, num_heads: int | None = None
    ) -> str:
        """The device's own layout; nothing for latent and sparse attention."""
        if attn_selector_config.use_mla or attn_selector_config.use_sparse:
            return ""
        return "fake_device.attention_backend.FakeAttentionBackend"

    @classmethod
    def import_kernels(cls) -> None:
        """Give torch the device and its operators, where `import torch` has not."""
        from fake_device import device

        device.install()

    @classmethod
    def _physical(cls, device_id: int) -> int:
        ids = visible()
        if not 0 <= device_id < len(ids):
            raise IndexError(f"fake device {device_id} was asked for, but {len(ids)} are visible")
        return ids[device_id]

"""The platform's class: the fake device's, with a fault for every check."""

# Overrides do what the contract says of them, or should.
# ruff: noqa: D102

import threading

import torch
from fake_device import device as fake
from fake_device.platform import FakePlatform

from broken_platform import kernels


class _BackwardsEvent:
    """An event that ends before it begins."""

    def __init__(self):
        self.event = torch.Event("fake", enable_timing=True)

    def __getattr__(self, name):
        return getattr(self.event, name)

    def elapsed_time(self, other):
        return -1.0


class Event(torch.Event):
    """The device's event, unless it is to measure time."""

    def __new__(cls, enable_timing=False):
        return _BackwardsEvent() if enable_timing else torch.Event("fake")


class Stream(fake.Stream):
    """The device's stream, which waits for nobody."""

    def wait_event(self, event):
        """Forgotten."""


class BrokenPlatform(FakePlatform):
    """See `FAULTS` of this package."""

    device_name = "broken"
    dispatch_key = "XPU"
    ray_device_key = None
    device_control_env_var = "BROKEN_VISIBLE_DEVICES"
    Event = Event
    Stream = Stream
    _streams = None

    def __init__(self):
        self._lock = threading.Lock()

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)

    @classmethod
    def capabilities(cls, device_id=0):
        return super().capabilities()._replace(native_dtypes=("float31",))

    def get_punica_wrapper(self):
        return ""

    @classmethod
    def get_devices_total_memory(cls, device_id=0):
        return 1 << 40

    @classmethod
    def support_hybrid_kv_cache(cls):
        return None

    @classmethod
    def get_static_graph_wrapper_cls(cls):
        return "broken_platform.graphs.Missing"

    @classmethod
    def get_device_name(cls, device_id=0):
        torch.zeros(1, device="fake")
        return ""

    @classmethod
    def get_device_uuid(cls, device_id=0):
        return "SAME"

    @classmethod
    def get_device_total_memory(cls, device_id=0):
        return 64 << 20

    @classmethod
    def set_device(cls, index):
        """Forgotten."""

    @classmethod
    def visible_device_id_to_physical_device_id(cls, device_id):
        return 0

    @classmethod
    def manual_seed_all(cls, seed):
        """Forgotten."""

    @classmethod
    def mem_get_info(cls, device=None):
        free, total = torch.fake.mem_get_info()
        return total, free

    @classmethod
    def memory_allocated(cls, device=None):
        return 0

    @classmethod
    def max_memory_allocated(cls, device=None):
        return 0

    @classmethod
    def synchronize(cls, device=None):
        """Forgotten."""

    @classmethod
    def current_stream(cls, device=None):
        """The one that was current when this was first asked for."""
        cls._streams = cls._streams or [fake.current_stream()]
        return cls._streams[0]

    @classmethod
    def get_attn_backend_cls(cls, selected_backend, head_size, dtype, kv_cache_dtype, use_v1):
        return "broken_platform.kernels.BrokenBackend"

    @classmethod
    def import_kernels(cls):
        super().import_kernels()
        kernels.install()


class Restarted(BrokenPlatform):
    """What a process gets that asks before anything else."""

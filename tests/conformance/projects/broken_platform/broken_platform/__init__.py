"""A platform on the fake device with a fault for every check; `FAULTS` lists them."""

import builtins
import os
import signal
import sys
import threading
import time

FAULTS = {
    "registration.answer": "here, and in new processes",
    "registration.repeat": "the second 'RuntimeError: the licence is taken'",
    "registration.cost": "it imports torch",
    "registration.effects": "BROKEN_PLATFORM_WAS_HERE",
    "registration.threads": "signal only works in main thread",
    "registration.class": "choosing the platform imports torch",
    "contract.identity": "dispatch_key is 'XPU', but tensors of 'fake' dispatch to 'PrivateUse1'",
    "contract.members": "get_punica_wrapper is an instance method",
    "contract.signatures": "set_device(index) cannot be called as set_device(device=...)",
    "contract.names": "get_devices_total_memory is not in the contract; did you mean get_device",
    "contract.answers": "support_hybrid_kv_cache() is None; the contract says bool",
    "contract.values": "has 'float31', which is no dtype of torch",
    "contract.paths": "get_static_graph_wrapper_cls() names broken_platform.graphs.Missing",
    "contract.unknown": "__getattr__ must raise",
    "contract.copies": "cannot pickle '_thread.lock' object",
    "contract.memory_info": "expected a MemoryInfo",
    "devices.count": "2 devices are visible; the requirements say 4",
    "devices.facts": "get_device_name(0) is ''",
    "devices.uuid": "gives ['SAME', 'SAME']",
    "devices.range": "get_device_name(2) answers ''",
    "devices.current": "after set_device(1) current_device() is 0",
    "devices.spaces": "two visible devices are one physical device: [0, 0]",
    "devices.control": "BROKEN_VISIBLE_DEVICES is empty, and 2 devices are visible",
    "devices.copies": "torch.uint8: a tensor comes back changed",
    "devices.mixed": "tensors of the host and the device are added without an error",
    "devices.compute": "addition is off by",
    "devices.random": "the same seed gives other numbers",
    "memory.total": "get_device_total_memory() 67108864",
    "memory.counted": "changes memory_allocated() by 0",
    "memory.free": "takes 0 from the free memory",
    "memory.peak": "raises the most by 0",
    "memory.limit": "can be made on a device that has fewer",
    "memory.reused": "a tensor that is in use was overwritten",
    "memory.pinned": "pin_memory() pins nothing",
    "streams.synchronize": "the current stream still has work after synchronize()",
    "streams.current": "inside stream(s) the current stream is not s",
    "streams.order": "the reader got",
    "streams.time": "nothing took -1.0 ms",
    "streams.lifetime": "the sum of 0 to 99 is",
    "processes.fork": "the fake device was started before this process was forked",
    "processes.worker": "chose the platform broken-platform/broken",
    "processes.threads": "got a wrong result",
    "operators.kernels": "attention has no implementation for XPU",
    "operators.attention": "softcap, float32: out is off by",
    "operators.drawn": "drawn case",
    "operators.causal_flags": "float32: sequences that differ in being causal: out is off by",
    "operators.cache": "bytes of the keys differ",
    "operators.merge": "float32: out is off by",
    "operators.inputs": "attention changes q",
    "operators.repeat": "another run gives other bits",
    "operators.refusals": "a bad block_table is accepted",
    "backends.choice": "broken_platform.graphs.Backend: ModuleNotFoundError",
    "backends.shape": "get_kv_cache_shape(12, ...) is (np.int64(12), ",
    "backends.reasons": "for float64 queries it has no reason",
    "backends.layer": "SIGABRT",
}
"""The faults planted, by the check that must find it, with a part of what it must say."""

_calls = 0


def register() -> str | None:
    """Do everything that a plugin's function must not do."""
    global _calls
    if not os.environ.get("FAKE_DEVICES"):
        return None
    _calls += 1
    if _calls == 2:
        raise RuntimeError("the licence is taken")
    # Another answer in a process that has already done something.
    name = "BrokenPlatform" if "torch" in sys.modules else "Restarted"
    os.environ["BROKEN_PLATFORM_WAS_HERE"] = "1"
    print("Welcome to Broken!")
    original = builtins.__import__
    builtins.__import__ = lambda *arguments, **named: original(*arguments, **named)
    threading.Thread(target=time.sleep, args=(1e9,), daemon=True).start()
    import torch  # noqa: F401

    signal.signal(signal.SIGUSR2, signal.SIG_DFL)  # only the main thread may
    return f"broken_platform.platform.{name}"

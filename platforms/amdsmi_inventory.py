"""Print what AMD's management library knows about this machine's devices, one line for each.

Run in a process of its own, with a question as first argument and the folder of `amdsmi` as second,
for which see `bounded.py`: starting the library has been seen to take for ever. The kernel's files
describe the devices already; this adds what they leave out. A line is a kind and its fields,
separated by tabs::

    library  version
    device   PCI address  market name  bytes in all  bytes in use
    fault    number  error  message      (a device that does not answer)
    error    error  message              (nothing answers)
    end
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

__all__ = ["main"]

_MEBIBYTE = 1 << 20


def main(arguments: Sequence[str]) -> str:
    """The inventory, or the error that the library gave, as lines."""
    _, *folders = arguments
    # The folder is the package's own: its name is in the one above.
    sys.path.extend(map(os.path.dirname, folders))
    return "\n".join("\t".join(map(_text, fields)) for fields in [*_answer(), ("end",)])


def _answer() -> Iterator[tuple[Any, ...]]:
    try:
        library: Any = __import__("amdsmi")
        library.amdsmi_init()
        yield "library", getattr(library, "__version__", "")
        for number, handle in enumerate(library.amdsmi_get_processor_handles()):
            try:
                yield _device(library, handle)
            except Exception as error:  # noqa: BLE001 - its own classes differ between versions
                yield "fault", number, type(error).__name__, error
    except Exception as error:  # noqa: BLE001 - importing it looks for a library, and says so
        yield "error", type(error).__name__, error


def _device(library: Any, handle: Any) -> tuple[Any, ...]:
    usage = library.amdsmi_get_gpu_vram_usage(handle)
    return (
        "device",
        library.amdsmi_get_gpu_device_bdf(handle),
        library.amdsmi_get_gpu_asic_info(handle)["market_name"],
        int(usage["vram_total"]) * _MEBIBYTE,
        int(usage["vram_used"]) * _MEBIBYTE,
    )


def _text(value: object) -> str:
    return " ".join(str(value).split())

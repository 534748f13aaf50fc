"""Write `support.md` from the predicates themselves: `python docs/support.py`.

The predicates are asked as on a machine of each kind, with every library that this release can
build for it; no device is needed. It needs torch and an installation.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from unittest.mock import patch

if TYPE_CHECKING:
    from mainboard.kernels.support import Choice

PAGE = Path(__file__).parent / "support.md"

HEAD = """# What serves what

<!-- Written by `python docs/support.py` from the predicates of `mainboard.kernels.support`. Do not \
edit. -->

For every kind of device, with the libraries that can be built for it: the best implementation of \
each case. `mainboard kernels` shows the same for the machine that it runs on.

*CPU*, *CUDA* and *HIP* are the compiled libraries, *Triton* the portable kernels, *reference* the \
plain PyTorch that runs anywhere. A cell speaks of float32, float16 and bfloat16 alike unless it \
names one. Decode has one query of each sequence here, and prefill 512, both with four query heads \
to a key head and heads of 128; fp8 caches are paged. *Every option* is a window, a softcap, \
ALiBi, sinks and a causal flag for each sequence at once.

The CUDA library and the Triton kernels were run on Hopper, the CPU library on x86-64. What the \
other columns name is compiled for those devices, and was not run on hardware.
"""


class Kind(NamedTuple):
    """Devices that are served alike."""

    title: str
    device: str
    architecture: str
    library: str | None


KINDS = (
    Kind("CPU", "cpu", "", "cpu"),
    Kind("NVIDIA Hopper", "cuda", "sm_90", "cuda"),
    Kind("NVIDIA from sm_80", "cuda", "sm_80", None),
    Kind("NVIDIA sm_75", "cuda", "sm_75", None),
    Kind("AMD CDNA 2 and later, RDNA 3 and 4", "cuda", "gfx942", "hip"),
    Kind("AMD without matrix units", "cuda", "gfx906", None),
)
ELSEWHERE = "is for other devices"
SHORT = {
    "compiled CPU": "CPU",
    "compiled CUDA": "CUDA",
    "compiled HIP": "HIP",
    "PyTorch reference": "reference",
}


@contextmanager
def as_on(kind: Kind) -> Iterator[None]:
    """Answer the predicates' questions about the machine as one of this kind would."""
    from mainboard.kernels import library
    from mainboard.kernels.triton import support as triton

    def loaded(device: str) -> library.Library:
        there = device == kind.library
        return library.Library(device, None, there, "loaded" if there else ELSEWHERE)

    with ExitStack() as stack:
        for place, name, answer in (
            (library, "loaded", loaded),
            (library, "forced_level", lambda: None),
            (library, "interpreted", lambda: False),
            (library, "why_no_triton", lambda: None),
            (triton, "interpreted", lambda: False),
            (triton, "architecture", lambda index: kind.architecture),
            (triton.torch.cuda, "is_available", lambda: True),
        ):
            stack.enter_context(patch.object(place, name, answer))
        yield


def page() -> str:
    """The whole document."""
    from mainboard.kernels.matrix import CASES, ask

    cells: dict[str, list[str]] = {}
    reasons: dict[str, dict[str, None]] = {}
    for kind in KINDS:
        with as_on(kind):
            for name, request in CASES:
                choices = ask(request, kind.device)
                served = {
                    str(dtype).removeprefix("torch."): SHORT.get(found, found)
                    for dtype, choice in choices.items()
                    for found in [choice.implementation.name]
                }
                cells.setdefault(f"`{request.operator}` | {name}", []).append(_cell(served))
                for reason in _reasons(request.operator, choices.values()):
                    reasons.setdefault(kind.title, {})[reason] = None
    titles = " | ".join(kind.title for kind in KINDS)
    rows = [f"| {case} | {' | '.join(found)} |" for case, found in cells.items()]
    table = [f"| operator | case | {titles} |", "|---" * (2 + len(KINDS)) + "|", *rows]
    why = ["## Why not the better one", "", "What the predicates answered for these cases."]
    for title, lines in reasons.items():
        why += ["", f"### {title}", "", *(f"- {line}" for line in lines)]
    return "\n".join([HEAD, *table, "", *why, ""])


def _reasons(operator: str, choices: "Iterable[Choice]") -> Iterator[str]:
    """What spoke against better implementations that are for such a device at all."""
    for choice in choices:
        for name, reasons in choice.rejected.items():
            for reason in reasons:
                if reason != ELSEWHERE and not reason.startswith("runs on "):
                    yield f"{SHORT.get(name, name)}, {operator}: {reason}"


def _cell(served: dict[str, str]) -> str:
    """The most common answer, and the dtypes that have another."""
    names = list(served.values())
    usual = max(names, key=names.count)
    others = [f"{dtype}: {name}" for dtype, name in served.items() if name != usual]
    return usual + (f" ({', '.join(others)})" if others else "")


if __name__ == "__main__":
    PAGE.write_text(page())

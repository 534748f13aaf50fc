"""Every `vllm` name that Mainboard answers for: that it imports, what it is, and what all cost.

The cost is that of importing every module of the table and reading every name that needs no torch,
in a fresh interpreter started with `-S`. Each sample is a process of its own; the median counts.

    python benchmarks/alias_names.py [--samples 15] [--json]
"""

from __future__ import annotations

import sys
from importlib import import_module

# Nothing more at the top: what the measured process has imported already would cost it nothing.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

BUDGET = 60.0

# What the names need of the standard library; importing these alone is the control of a run.
CONTROL = ("argparse", "dataclasses", "enum", "logging", "threading", "typing")

# Reading it chooses the platform, which has a budget of its own.
CHOOSES = ("current_platform",)


def read_all(with_torch: bool = True) -> dict[str, Any]:
    """Import every module and read every name; the figure is for those without torch.

    Args:
        with_torch: whether to go on afterwards, with those that import torch.
    """
    import time

    start, cpu = time.perf_counter(), time.process_time()
    from mainboard.plugins import alias

    alias.install()
    from mainboard.plugins.alias_table import ALIASES

    read, later = [], []
    for module, entry in ALIASES.items():
        if entry.torch == ("*",):
            later.append((module, "*"))
            continue
        found = import_module(module)
        read.append((module, "", found))
        behind = import_module(entry.target).__all__ if entry.target else ()
        for name in dict.fromkeys((*entry.names, *behind, *entry.torch)):
            if name in entry.torch or name in CHOOSES:
                later.append((module, name))
            else:
                read.append((module, name, getattr(found, name)))
    figures = {
        "milliseconds": (time.perf_counter() - start) * 1e3,
        "cpu_milliseconds": (time.process_time() - cpu) * 1e3,
        "torch": "torch" in sys.modules,
    }
    if not with_torch:
        return figures
    rows = [(module, name, describe(value), False) for module, name, value in read]
    for module, name in later:
        found = import_module(module)
        names = (
            ["", *import_module(ALIASES[module].target or "").__all__] if name == "*" else [name]
        )
        for each in names:
            value = getattr(found, each) if each else found
            rows.append((module, each, describe(value), each not in CHOOSES))
    return {**figures, "names": rows}


def describe(value: Any) -> str:
    """What a value is, and where it is at home."""
    kind = "class" if isinstance(value, type) else type(value).__name__
    home = getattr(value, "__module__", None) or ""
    if kind == "AliasModule":
        return "module"
    return f"{kind} of {home}" if home.startswith("mainboard") else kind


def control() -> dict[str, Any]:
    """Import what the names need of the standard library."""
    import time

    start, cpu = time.perf_counter(), time.process_time()
    for name in CONTROL:
        import_module(name)
    return {
        "milliseconds": (time.perf_counter() - start) * 1e3,
        "cpu_milliseconds": (time.process_time() - cpu) * 1e3,
    }


def sample(what: str) -> dict[str, Any]:
    """One fresh process."""
    import json
    import os
    import subprocess
    from importlib.util import find_spec
    from pathlib import Path

    places = [find_spec("mainboard"), find_spec("torch"), find_spec("packaging")]
    path = [str(Path(spec.origin).parent.parent) for spec in places if spec and spec.origin]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("VLLM_")},
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(path)),
    }
    # Installed code has its bytecode; the process that is not counted writes what is missing.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, "-S", "-P", __file__, what]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def measure(samples: int) -> dict[str, Any]:
    """The names, and the figures over all samples."""
    import os

    first = sample("--child")
    figures, controls = [], []
    for _ in range(samples):
        figures.append(sample("--measured"))
        controls.append(sample("--control"))
    return {
        "names": first["names"],
        "torch": any(each["torch"] for each in figures),
        "samples": samples,
        "all": summary(figures),
        "control": summary(controls),
        "budget": BUDGET,
        "within_budget": summary(figures)["median"] <= BUDGET,
        "load": round(os.getloadavg()[0], 2),
    }


def summary(figures: list[dict[str, Any]]) -> dict[str, float]:
    """Median and extremes of the time, and the median of the processor's."""
    from statistics import median

    walls = [each["milliseconds"] for each in figures]
    return {
        "median": round(median(walls), 1),
        "min": round(min(walls), 1),
        "max": round(max(walls), 1),
        "cpu": round(median(each["cpu_milliseconds"] for each in figures), 1),
    }


def show(result: dict[str, Any]) -> None:
    """The table, then the figures."""
    for module, name, what, needs_torch in result["names"]:
        label = f"  .{name}" if name else module
        print(f"{label:64} {what}{', needs torch' if needs_torch else ''}")
    names = [name for _, name, _, _ in result["names"] if name]
    modules = len(result["names"]) - len(names)
    print(f"\n{modules} modules, {len(names)} names; torch imported: {result['torch']}")
    for title, key in (("names without torch", "all"), ("control", "control")):
        row = result[key]
        print(
            f"{title}: median {row['median']} ms of {result['samples']} processes (min"
            f" {row['min']}, max {row['max']}; processor time {row['cpu']} ms)"
        )
    print(
        f"control is importing {', '.join(CONTROL)}; budget {result['budget']:.0f} ms; load {result['load']}"
    )


def main() -> int:
    """Print the table; 1 when torch was imported where it should not be."""
    children = {
        "--child": read_all,
        "--measured": lambda: read_all(with_torch=False),
        "--control": control,
    }
    if sys.argv[1:] and sys.argv[1] in children:
        figures = children[sys.argv[1]]()
        import json

        print(json.dumps(figures))
        return 0
    import argparse
    import json

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = measure(options.samples)
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        show(result)
    return int(result["torch"])


if __name__ == "__main__":
    sys.exit(main())

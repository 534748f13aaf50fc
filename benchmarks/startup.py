"""What importing Mainboard, finding plugins and choosing a platform cost, in fresh processes.

Every sample is a new interpreter, started with `-S`: what `.pth` files import is in nobody's
figure. It imports `os` first, as an interpreter with `site` has. The order of the samples is
shuffled. "Extra distributions" are generated metadata directories, 30 % of them with entry points,
on a path of their own.

    python benchmarks/startup.py [--samples 15] [--leave-out torch] [--json]
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

EXTRAS = (0, 300, 1000)
MARK = "@@"

# Each program prints one number of milliseconds, or nothing: then its wall time is the sample.
BARE = "pass"
IMPORT_TORCH = "import torch"
IMPORT = "import mainboard.platforms"
RESOLVE = f"""
import time, mainboard.platforms as p
start = time.perf_counter()
p.current_platform
print("{MARK}", (time.perf_counter() - start) * 1e3)
"""
DISCOVER = f"""
import mainboard.plugins
print("{MARK}", mainboard.plugins.report().discovery_milliseconds)
"""
STDLIB = f"""
import time
start = time.perf_counter()
from importlib.metadata import entry_points
entry_points(group="vllm.platform_plugins")
print("{MARK}", (time.perf_counter() - start) * 1e3)
"""
READ = f"""
from timeit import Timer
setup = "import mainboard.platforms as p; from mainboard.platforms import current_platform as held"
def best(statement):
    return min(Timer(statement, setup).repeat(15, 100_000)) / 100_000
print("{MARK}", (best("%s") - best("pass")) * 1e9)
"""


class Row(NamedTuple):
    """One line of the table: what is run, with how many extra distributions, cache warm or not."""

    title: str
    program: str
    extra: int = 0
    cache: str = "warm"
    budget: float | None = None
    over_bare: bool = False
    unit: str = "ms"


def rows() -> list[Row]:
    """Every measurement; design budgets where there are any."""
    table = [
        Row("bare interpreter", BARE),
        Row("import torch, over bare", IMPORT_TORCH, over_bare=True),
        Row("import mainboard.platforms, over bare", IMPORT, budget=15, over_bare=True),
    ]
    for extra in EXTRAS:
        for cache in ("cold", "warm"):
            # 60 ms is for a machine on which a driver has to be asked.
            budget = 60 if os.path.exists("/dev/nvidiactl") or os.path.exists("/dev/kfd") else 30
            table.append(Row("resolve current_platform", RESOLVE, extra, cache, budget))
    for extra in EXTRAS:
        table.append(Row("discovery", DISCOVER, extra, "cold", 10))
        table.append(Row("discovery", DISCOVER, extra, "warm", 1))
        table.append(Row("stdlib entry_points(), with its import", STDLIB, extra, "none"))
    for statement in ("held.device_type", "p.current_platform.device_type"):
        table.append(Row(f"read {statement}", READ % statement, budget=60, unit="ns"))
    return table


def make_distributions(folder: Path, count: int) -> None:
    """Metadata as installers write it, settled long enough ago to be cached."""
    past = time.time() - 3600
    for number in range(count):
        info = folder / f"extra_distribution_{number}-1.{number}.dist-info"
        info.mkdir(parents=True)
        name = f"extra-distribution-{number}"
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.{number}\n" + "Classifier: x\n" * 20
        )
        (info / "WHEEL").write_text("Wheel-Version: 1.0\n")
        (info / "RECORD").write_text(f"{name}/__init__.py,,\n" * 20)
        if number % 10 < 3:
            (info / "entry_points.txt").write_text(
                f"[console_scripts]\n{name} = package_{number}:main\n"
                "[pytest11]\nplugin = package:plugin\n"
            )
    folder.mkdir(exist_ok=True)
    os.utime(folder, (past, past))


def search_path() -> list[str]:
    """Where the parts under test are: Mainboard itself, and what is installed beside torch."""
    places = []
    for name in ("mainboard", "torch"):
        spec = find_spec(name)
        if spec is not None and spec.origin is not None:
            places.append(str(Path(spec.origin).parent.parent))
    return list(dict.fromkeys(places))


def sample(row: Row, folders: dict[int, Path], cache: Path) -> float:
    """One fresh process; its own figure, or its wall time."""
    if row.cache == "cold":
        for file in (cache / "plugins").glob("*"):
            file.unlink()
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*search_path(), str(folders[row.extra])]),
        "MAINBOARD_CACHE": str(cache),
    }
    # Installed code has its bytecode; the round that is not counted writes what is missing.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, "-S", "-P", "-c", f"import os\n{row.program}"]
    start = time.perf_counter()
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    wall = (time.perf_counter() - start) * 1e3
    own = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    return float(own[-1].removeprefix(MARK)) if own else wall


def measure(table: list[Row], samples: int) -> list[dict[str, Any]]:
    """All rows, interleaved in random order after one run of each that is not counted."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        folders = {extra: root / f"site{extra}" for extra in EXTRAS}
        for extra, folder in folders.items():
            make_distributions(folder, extra)
        # A folder of its own per state: emptying the cold one must not cool the warm one.
        caches = {state: root / state for state in ("cold", "warm", "none")}
        figures: dict[Row, list[float]] = {row: [] for row in table}
        jobs = table * (samples + 1)
        order = [
            *jobs[: len(table)],
            *random.Random(0).sample(jobs[len(table) :], len(jobs) - len(table)),
        ]
        for number, row in enumerate(order):
            figure = sample(row, folders, caches[row.cache])
            if number >= len(table):
                figures[row].append(figure)
            show_progress(number + 1, len(order))
    bare = statistics.median(figures[table[0]])
    return [summary(row, figures[row], bare if row.over_bare else 0.0) for row in table]


def summary(row: Row, figures: list[float], base: float) -> dict[str, Any]:
    """Median, extremes and whether the budget holds."""
    median = statistics.median(figures) - base
    return {
        "what": row.title,
        "extra_distributions": row.extra,
        "cache": row.cache,
        "median": round(median, 3),
        "min": round(min(figures) - base, 3),
        "max": round(max(figures) - base, 3),
        "unit": row.unit,
        "budget": row.budget,
        "within_budget": None if row.budget is None else median <= row.budget,
    }


def show_progress(done: int, total: int) -> None:
    """A counter on a terminal, nothing elsewhere."""
    if sys.stderr.isatty():
        print(f"\r{done}/{total} processes", end="\n" if done == total else "", file=sys.stderr)


def machine(samples: int) -> dict[str, Any]:
    """What the figures depend on."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        model = models[0] if models else model
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "load": [round(value, 2) for value in os.getloadavg()]
        if hasattr(os, "getloadavg")
        else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: installed_version(name) for name in ("mainboard", "torch")},
        "samples": samples,
    }


def installed_version(name: str) -> str | None:
    """The version of a distribution, if it is installed as one."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def table_text(results: list[dict[str, Any]]) -> str:
    """The results as a Markdown table."""
    lines = [
        "| what | extra | cache | median | min | max | budget | |",
        "|---|--:|---|--:|--:|--:|--:|---|",
    ]
    for row in results:
        unit = row["unit"]
        figures = " | ".join(f"{row[name]:.3g} {unit}" for name in ("median", "min", "max"))
        budget = "" if row["budget"] is None else f"{row['budget']:g} {unit}"
        verdict = {None: "", True: "within", False: "over"}[row["within_budget"]]
        start = f"| {row['what']} | {row['extra_distributions']} | {row['cache']} "
        lines.append(f"{start}| {figures} | {budget} | {verdict} |")
    return "\n".join(lines)


def main() -> int:
    """Measure and print; the exit code says whether every budget holds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=15, help="fresh processes per row")
    parser.add_argument("--leave-out", metavar="TEXT", help="skip the rows with this in their name")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    # The first row is what others are compared with.
    first, *others = rows()
    left_out = options.leave_out
    table = [first, *(row for row in others if left_out is None or left_out not in row.title)]
    facts, results = machine(options.samples), measure(table, options.samples)
    if options.json:
        print(json.dumps({"machine": facts, "results": results}, indent=2))
    else:
        print("\n".join(f"- {name}: {value}" for name, value in facts.items()))
        print(f"\n{table_text(results)}")
    return int(any(row["within_budget"] is False for row in results))


if __name__ == "__main__":
    raise SystemExit(main())

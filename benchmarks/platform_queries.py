"""What each question to a platform costs once its answer is known, and the first time.

The platform is the one of this machine, or with `--machine` the one of a recorded machine, so that
any platform's costs can be measured anywhere. A figure is the least of many short rounds that take
turns, less that of a round which asks nothing; the first answer is counted once.

    python benchmarks/platform_queries.py [--machine tests/platforms/machines/h200.json] [--json]
"""

import argparse
import json
import os
import platform as host
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from timeit import Timer
from typing import Any, NamedTuple

from mainboard import platforms
from mainboard.errors import PlatformUnavailableError
from mainboard.platforms.machine import this_machine
from mainboard.platforms.recording import Replay, facts_of, platform_on

REPEATS = 300
HOT_BUDGET = 200.0


class Query(NamedTuple):
    """A question, and whether programs ask it in their inner loops."""

    text: str
    hot: bool = False
    rounds: int = 2_000


QUERIES = [
    Query("p.device_type", hot=True),
    Query("p.is_cuda()", hot=True),
    Query("p.is_cuda_alike()", hot=True),
    Query("p.get_device_capability()", hot=True),
    Query("p.has_device_capability((9, 0))", hot=True),
    Query("p.capabilities()", hot=True),
    Query("p.is_pin_memory_available()", hot=True),
    Query("p.supports_fp8()", hot=True),
    Query("p.is_fp8_fnuz()", hot=True),
    Query("p.device_count()", hot=True),
    Query("p.get_device_name()", hot=True),
    Query("p.get_device_uuid()"),
    Query("p.get_device_total_memory()"),
    Query("p.num_compute_units()"),
    Query("p.visible_physical_ids()", rounds=200),
    Query("p.device_id_to_physical_device_id(0)", rounds=200),
    Query("p.is_fully_connected([0])", rounds=200),
    Query("p.describe()", rounds=5),
    Query("p.get_device_memory_info()", rounds=1),
]


class Empty:
    """A class whose method does nothing: what any call costs here."""

    @classmethod
    def nothing(cls, device_id: int = 0) -> None:
        """Do nothing."""


def first_answers(target: object) -> list[dict[str, Any]]:
    """Each question's first answer in milliseconds, or why there is none."""
    rows: list[dict[str, Any]] = []
    for query in QUERIES:
        question = compile(query.text, "question", "eval")
        start = time.perf_counter()
        try:
            eval(question, {"p": target})
        except (NotImplementedError, PlatformUnavailableError) as error:
            rows.append({"query": query.text, "refused": str(error)})
            continue
        milliseconds = (time.perf_counter() - start) * 1e3
        rows.append({"query": query.text, "first_ms": milliseconds, "hot": query.hot})
    return rows


def known_answers(texts: Mapping[str, int], target: object) -> dict[str, float]:
    """The nanoseconds of each statement in the best of its short rounds.

    The rounds take turns, so that each statement meets the machine's quiet moments.
    """
    names = {"p": target, "empty": Empty()}
    timers = {text: Timer(text, globals=names) for text in ("p", *texts)}
    best = dict.fromkeys(timers, float("inf"))
    for turn in range(REPEATS):
        for text, timer in timers.items():
            rounds = texts.get(text, 2_000)
            if rounds >= 100 or turn < 5:
                best[text] = min(best[text], timer.timeit(rounds) / rounds * 1e9)
    return {text: least - best["p"] for text, least in best.items()}


def recorded(file: Path) -> object:
    """The platform that a recorded machine has."""
    machine = Replay(json.loads(file.read_text("utf-8")))
    # The variables are this process's, read as they are on the machine itself.
    machine.raw_environ = this_machine().raw_environ
    (name, *_) = facts_of(machine)["devices"]
    probe: Callable[[Any], Any] = __import__(
        f"mainboard.platforms.{name}", fromlist=["probe"]
    ).probe
    return platform_on(machine, probe(machine).value)()


def table_text(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = ["| question | first, ms | then, ns | |", "|---|--:|--:|---|"]
    for row in rows:
        if "refused" in row:
            lines.append(f"| `{row['query']}` | | | not offered |")
            continue
        verdict = {None: "", True: "hot: within 200", False: "hot: over 200"}[row["within"]]
        lines.append(f"| `{row['query']}` | {row['first_ms']:.3f} | {row['ns']:,.0f} | {verdict} |")
    return "\n".join(lines)


def main() -> int:
    """Measure and print; the exit code says whether every hot question is within its budget."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--machine", type=Path, help="a file of `mainboard env --record`")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    target = recorded(options.machine) if options.machine else platforms.current_platform
    rows = first_answers(target)
    asked = {row["query"] for row in rows if "refused" not in row}
    rounds = {query.text: query.rounds for query in QUERIES if query.text in asked}
    known = known_answers({"empty.nothing()": 2_000, **rounds}, target)
    for row in rows:
        if "refused" not in row:
            row["ns"] = known[row["query"]]
            row["within"] = row["ns"] <= HOT_BUDGET if row["hot"] else None
    facts = {
        "platform": repr(target),
        "processor": this_machine().architecture,
        "python": host.python_version(),
        "load": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "an empty class method, ns": round(known["empty.nothing()"], 1),
    }
    if options.json:
        print(json.dumps({"machine": facts, "results": rows}, indent=2))
    else:
        print("\n".join(f"- {name}: {value}" for name, value in facts.items()))
        print(f"\n{table_text(rows)}")
    return int(any(row.get("within") is False for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())

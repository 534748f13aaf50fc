"""What each question to a platform costs once its answer is known, and the first time.

The platform is the one of this machine, or with `--machine` the one of a recorded machine, so that
any platform's costs can be measured anywhere. A figure is the least of many rounds, less the round
itself; the first answer is asked for in a fresh object and counted once.

    python benchmarks/platform_queries.py [--machine tests/platforms/machines/h200.json] [--json]
"""

import argparse
import json
import os
import platform as host
import time
from collections.abc import Callable
from pathlib import Path
from timeit import Timer
from typing import Any, NamedTuple

from mainboard import platforms
from mainboard.errors import PlatformUnavailableError
from mainboard.platforms.machine import this_machine
from mainboard.platforms.recording import Replay, facts_of, platform_on

ROUNDS, REPEATS = 100_000, 15
HOT_BUDGET = 200.0


class Query(NamedTuple):
    """A question, and whether programs ask it in their inner loops."""

    text: str
    hot: bool = False
    rounds: int = ROUNDS


QUERIES = [
    Query("p.device_type", hot=True),
    Query("p.is_cuda()", hot=True),
    Query("p.is_cuda_alike()", hot=True),
    Query("p.get_device_capability()", hot=True),
    Query("p.has_device_capability((9, 0))", hot=True),
    Query("p.capabilities()", hot=True),
    Query("p.is_pin_memory_available()", hot=True),
    Query("p.supports_fp8()"),
    Query("p.is_fp8_fnuz()"),
    Query("p.device_count()"),
    Query("p.get_device_name()"),
    Query("p.get_device_uuid()"),
    Query("p.get_device_total_memory()"),
    Query("p.num_compute_units()"),
    Query("p.visible_physical_ids()", rounds=2_000),
    Query("p.device_id_to_physical_device_id(0)", rounds=2_000),
    Query("p.is_fully_connected([0])", rounds=2_000),
    Query("p.describe()", rounds=20),
    Query("p.get_device_memory_info()", rounds=3),
]


class Empty:
    """A class whose method does nothing: what any call costs here."""

    @classmethod
    def nothing(cls, device_id: int = 0) -> None:
        """Do nothing."""


def cost(query: Query, target: object) -> dict[str, Any]:
    """The first answer's milliseconds, and the nanoseconds of one that is known."""
    names = {"p": target}
    question = compile(query.text, "question", "eval")
    start = time.perf_counter()
    try:
        eval(question, names)
    except (NotImplementedError, PlatformUnavailableError) as error:
        return {"query": query.text, "refused": str(error)}
    first = (time.perf_counter() - start) * 1e3
    repeats = REPEATS if query.rounds > 100 else 3
    known = least(query.text, names, query.rounds, repeats) - least("p", names, query.rounds)
    within = known <= HOT_BUDGET if query.hot else None
    return {"query": query.text, "first_ms": first, "ns": known, "hot": query.hot, "within": within}


def least(statement: str, names: dict[str, Any], rounds: int, repeats: int = REPEATS) -> float:
    """Nanoseconds of a statement in its best round."""
    return min(Timer(statement, globals=names).repeat(repeats, rounds)) / rounds * 1e9


def recorded(file: Path) -> object:
    """The platform that a recorded machine has."""
    machine = Replay(json.loads(file.read_text("utf-8")))
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
    empty = least("p.nothing()", {"p": Empty()}, ROUNDS) - least("p", {"p": Empty()}, ROUNDS)
    rows = [cost(query, target) for query in QUERIES]
    facts = {
        "platform": repr(target),
        "processor": this_machine().architecture,
        "python": host.python_version(),
        "load": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "an empty class method, ns": round(empty, 1),
    }
    if options.json:
        print(json.dumps({"machine": facts, "results": rows}, indent=2))
    else:
        print("\n".join(f"- {name}: {value}" for name, value in facts.items()))
        print(f"\n{table_text(rows)}")
    return int(any(row.get("within") is False for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())

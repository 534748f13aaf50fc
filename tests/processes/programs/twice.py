"""Load every plugin twice here, in every way there is, and once in a spawned worker."""

import json
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import report

from mainboard.plugins import load_general_plugins, load_plugins_by_group, prepare_worker


def main():
    """Print what the shapes say here and in the worker."""
    names = sys.argv[1:]
    load_general_plugins()
    load_general_plugins()
    with ThreadPoolExecutor(4, initializer=prepare_worker) as threads:
        list(threads.map(lambda _: load_general_plugins(), range(8)))
    for name, plugin in load_plugins_by_group("vllm.general_plugins").items():
        if name in names:
            plugin()
    here = report.shapes(names)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, prepare_worker) as executor:
        print(json.dumps({"here": here, "spawned": executor.submit(report.shapes, names).result()}))


if __name__ == "__main__":
    main()

"""Change the environment between the parent's choice and the start of a worker."""

import json
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import report

import mainboard.platforms
from mainboard.plugins import prepare_worker


def main():
    """Print the error that the worker's function got, and that the executor raises."""
    context = multiprocessing.get_context("spawn")
    parent = type(mainboard.platforms.current_platform).__name__
    name, _, value = sys.argv[1].partition("=")
    os.environ[name] = value
    with ProcessPoolExecutor(1, mp_context=context) as executor:
        inside = executor.submit(report.conflict).result()
    with ProcessPoolExecutor(1, mp_context=context, initializer=prepare_worker) as executor:
        try:
            outside = executor.submit(report.platform).result()
        except BrokenProcessPool:
            outside = "broken"
    print(json.dumps([parent, inside, outside]))


if __name__ == "__main__":
    main()

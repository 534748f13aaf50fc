"""Start workers in every way of the standard library, by one start method."""

import json
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor

import report

from mainboard.plugins import load_general_plugins, prepare_worker


def prepared(queue):
    """What a process of its own does."""
    prepare_worker()
    queue.put(seen())


def seen():
    """The platform of a worker, and how often its plugin was called there."""
    import shape_skips_known

    pid, name = report.platform()
    return [pid, name, shape_skips_known.calls.count(pid)]


def main():
    """Print what the parent and each worker say."""
    context = multiprocessing.get_context(sys.argv[1])
    load_general_plugins()
    answers = {"parent": seen()}
    queue = context.Queue()
    process = context.Process(target=prepared, args=(queue,))
    process.start()
    answers["process"] = queue.get(timeout=60)
    process.join()
    with context.Pool(1, initializer=prepare_worker) as pool:
        answers["pool"] = pool.apply(seen)
    with ProcessPoolExecutor(1, mp_context=context, initializer=prepare_worker) as executor:
        answers["executor"] = executor.submit(seen).result()
    print(json.dumps(answers))


if __name__ == "__main__":
    main()

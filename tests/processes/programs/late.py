"""Start the fork server first, choose the platform then, and start workers last."""

import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import report

from mainboard.plugins import prepare_worker, worker_environment


def main():
    """Print what workers say that got the parent's variables, none, and another's."""
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(1, mp_context=context) as executor:
        executor.submit(os.getpid).result()
    os.environ["MAINBOARD_PLATFORM"] = "cpu"
    given = worker_environment()
    answers = {"given": given}
    for name, arguments in (("without", ()), ("with", (given,))):
        with ProcessPoolExecutor(1, context, prepare_worker, arguments) as executor:
            answers[name] = executor.submit(report.platform).result()[1]
    other = given | {"MAINBOARD_PARENT_PLATFORM": "acme/acme (acme 1.2: acme.AcmePlatform)"}
    with ProcessPoolExecutor(1, context) as executor:
        error = executor.submit(prepare_worker, other).exception()
    answers["error"] = [type(error).__name__, str(error)]
    print(json.dumps(answers))


if __name__ == "__main__":
    main()

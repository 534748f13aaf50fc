"""One local Ray cluster: what its tasks and actors say, with the parent's environment or another's.

Its arguments are a folder for Ray's files and the names of the plugins to look at.
"""

import json
import os
import sys
import time

import ray
import report

import mainboard.platforms
from mainboard.plugins import load_general_plugins, prepare_worker, worker_environment

# No general plugins: these workers are there to be refused.
OTHER = {"SHAPE_DEVICES": "", "VLLM_PLUGINS": "shape_platform"}

# Set where the task itself calls `prepare_worker`: Ray has one hook for all workers of a job.
BY_ITSELF = "PREPARED_BY_ITSELF"


class Actor:
    """An actor that says what a task says."""

    def seen(self, names):
        """The platform here, and the plugins."""
        return seen(names)


def seen(names):
    """The platform of this process, and its plugins."""
    return {"platform": report.platform(), "shapes": report.shapes(names)}


def prepared(names):
    """What `seen` says, once this worker is found to be its parent's."""
    prepare_worker()
    return seen(names)


def hook():
    """Prepare every worker but those whose task does it."""
    if BY_ITSELF not in os.environ:
        prepare_worker()


def failure(reference):
    """The type and text of what a call raises."""
    try:
        return ["nothing", str(ray.get(reference, timeout=60))]
    except ray.exceptions.RayError as error:
        return [type(error).__name__, str(error)]


def main():
    """Print what each worker says."""
    folder, *names = sys.argv[1:]
    parent = type(mainboard.platforms.current_platform).__name__
    load_general_plugins()
    start = time.perf_counter()
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=80 << 20,
        _temp_dir=folder,
        runtime_env={
            "env_vars": worker_environment(),
            "worker_process_setup_hook": hook,
        },
    )
    started = time.perf_counter() - start
    task, actor = ray.remote(max_retries=0)(seen), ray.remote(Actor)
    answers = {"parent": parent, "start": started}
    answers["task"] = ray.get(task.remote(names))
    answers["actor"] = ray.get(actor.remote().seen.remote(names))
    other = {"env_vars": OTHER}
    answers["other task"] = failure(task.options(runtime_env=other).remote([]))
    answers["other actor"] = failure(actor.options(runtime_env=other).remote().seen.remote([]))
    itself = {"env_vars": {**OTHER, BY_ITSELF: "1"}}
    asking = ray.remote(max_retries=0)(prepared).options(runtime_env=itself)
    answers["other task that asks"] = failure(asking.remote([]))
    ray.shutdown()
    print(json.dumps(answers))


if __name__ == "__main__":
    main()

"""One local Ray cluster: what its tasks and actors say, with the parent's environment or another's.

Its arguments are a folder for Ray's files and the names of the plugins to look at.
"""

import json
import sys
import time

import ray
import report

import mainboard.platforms
from mainboard.plugins import load_general_plugins, prepare_worker, worker_environment

# No general plugins: these workers are there to be refused.
OTHER = {"env_vars": {"SHAPE_DEVICES": "", "VLLM_PLUGINS": "shape_platform"}}


class Actor:
    """An actor that says what a task says."""

    def seen(self, names):
        """The platform here, and the plugins."""
        return seen(names)


def seen(names):
    """The platform of this process, and its plugins."""
    return {"platform": report.platform(), "shapes": report.shapes(names)}


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
            "worker_process_setup_hook": prepare_worker,
        },
    )
    started = time.perf_counter() - start
    task, actor = ray.remote(max_retries=0)(seen), ray.remote(Actor)
    answers = {"parent": parent, "start": started}
    answers["task"] = ray.get(task.remote(names))
    answers["actor"] = ray.get(actor.remote().seen.remote(names))
    answers["other task"] = failure(task.options(runtime_env=OTHER).remote([]))
    answers["other actor"] = failure(actor.options(runtime_env=OTHER).remote().seen.remote([]))
    ray.shutdown()
    print(json.dumps(answers))


if __name__ == "__main__":
    main()

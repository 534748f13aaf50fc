"""Load plugins first, and take over the parent's settings then."""

import json
import os

from mainboard.plugins import load_general_plugins, prepare_worker

if __name__ == "__main__":
    load_general_plugins()
    prepare_worker({"VLLM_PLUGINS": os.environ["VLLM_PLUGINS"]})
    try:
        prepare_worker({"VLLM_PLUGINS": "another", "MAINBOARD_PLATFORM": "cpu"})
    except RuntimeError as error:
        print(json.dumps([type(error).__name__, str(error), os.environ["VLLM_PLUGINS"]]))

"""Has its function only when it is asked for, and adds variables (metal, zentorch)."""

import os

calls = []


def _register():
    from vllm.envs import environment_variables
    from vllm.logger import DEFAULT_LOGGING_CONFIG

    calls.append(os.getpid())
    environment_variables.update({"VLLM_SHAPE_PAGES": lambda: int(os.getenv("SHAPE_PAGES", "7"))})
    DEFAULT_LOGGING_CONFIG["loggers"]["shape"] = DEFAULT_LOGGING_CONFIG["loggers"]["vllm"]


def __getattr__(name):
    if name == "register":
        return _register
    raise AttributeError(name)


def effect():
    """What the plugin did."""
    from vllm import envs
    from vllm.logger import DEFAULT_LOGGING_CONFIG

    return [envs.VLLM_SHAPE_PAGES, "shape" in DEFAULT_LOGGING_CONFIG["loggers"]]

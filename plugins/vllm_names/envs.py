"""The environment variables of vLLM that packages outside it read, evaluated when they are read."""

import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from mainboard.plugins.filtering import allowed_from_environment

__all__ = ["environment_variables", "is_set", "validate_environ"]

_TRUE = ("1", "true", "yes", "on")


def _text(name: str, default: str | None) -> str | None:
    return os.environ.get(name, default)


def _integer(name: str, default: int | None) -> int | None:
    value = os.environ.get(name)
    return default if value is None else int(value)


def _flag(name: str, default: bool | None) -> bool | None:
    value = os.environ.get(name)
    return default if value is None else value.strip().lower() in _TRUE


def _folder(name: str, variable: str, *default: str) -> str:
    """A folder below one of the user's XDG folders."""
    base = os.environ.get(variable) or os.path.join("~", default[0])
    return os.path.expanduser(os.environ.get(name) or os.path.join(base, *default[1:]))


def _plugins() -> list[str] | None:
    names = allowed_from_environment().names
    return None if names is None else list(names)


_TEXTS: dict[str, str | None] = {
    "CMAKE_BUILD_TYPE": None,
    "CUDA_HOME": None,
    "CUDA_VISIBLE_DEVICES": None,
    "LD_LIBRARY_PATH": None,
    "MAX_JOBS": None,
    "NVCC_THREADS": None,
    "VLLM_API_KEY": None,
    "VLLM_CPU_OMP_THREADS_BIND": "auto",
    "VLLM_HOST_IP": "",
    "VLLM_LOGGING_CONFIG_PATH": None,
    "VLLM_LOGGING_LEVEL": "INFO",
    "VLLM_LOGGING_PREFIX": "",
    "VLLM_NCCL_SO_PATH": None,
    "VLLM_PP_LAYER_PARTITION": None,
    "VLLM_RAY_PER_WORKER_GPUS": "1.0",
    "VLLM_TARGET_DEVICE": "cuda",
    "VLLM_USAGE_SOURCE": "production",
    "VLLM_WORKER_MULTIPROC_METHOD": "fork",
}
_INTEGERS: dict[str, int | None] = {
    "LOCAL_RANK": 0,
    "VLLM_CONFIGURE_LOGGING": 1,
    "VLLM_CPU_KVCACHE_SPACE": None,
    "VLLM_CPU_NUM_OF_RESERVED_CPU": None,
    "VLLM_DP_MASTER_PORT": 0,
    "VLLM_DP_RANK": 0,
    "VLLM_DP_SIZE": 1,
    "VLLM_ENGINE_ITERATION_TIMEOUT_S": 60,
    "VLLM_PORT": None,
    "VLLM_RPC_TIMEOUT": 10000,
    "VLLM_TRACE_FUNCTION": 0,
}
_FLAGS: dict[str, bool | None] = {
    "VERBOSE": False,
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": False,
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": False,
    "VLLM_DISABLE_COMPILE_CACHE": False,
    "VLLM_DO_NOT_TRACK": False,
    "VLLM_ENABLE_V1_MULTIPROCESSING": True,
    "VLLM_NO_USAGE_STATS": False,
    "VLLM_SKIP_P2P_CHECK": False,
    "VLLM_USE_FLASHINFER_SAMPLER": None,
    "VLLM_USE_MODELSCOPE": False,
    "VLLM_USE_PRECOMPILED": False,
    "VLLM_USE_TRITON_AWQ": False,
}

# One dictionary, which plugins extend with `update`: whatever is in it is an attribute here.
environment_variables: dict[str, Callable[[], Any]] = {
    **{name: partial(_text, name, default) for name, default in _TEXTS.items()},
    **{name: partial(_integer, name, default) for name, default in _INTEGERS.items()},
    **{name: partial(_flag, name, default) for name, default in _FLAGS.items()},
    "VLLM_CACHE_ROOT": partial(_folder, "VLLM_CACHE_ROOT", "XDG_CACHE_HOME", ".cache", "vllm"),
    "VLLM_CONFIG_ROOT": partial(_folder, "VLLM_CONFIG_ROOT", "XDG_CONFIG_HOME", ".config", "vllm"),
    "VLLM_PLUGINS": _plugins,
}


def __getattr__(name: str) -> Any:
    try:
        read = environment_variables[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    return read()


def __dir__() -> list[str]:
    return sorted({*globals(), *environment_variables})


def is_set(name: str) -> bool:
    """Whether the environment has the variable.

    Raises:
        AttributeError: when no such variable is known.
    """
    if name not in environment_variables:
        raise AttributeError(f"{name} is no variable that {__name__} knows")
    return name in os.environ


def validate_environ(hard_fail: bool = False) -> None:
    """Say which `VLLM_*` variables are set that nobody reads.

    Kubernetes sets `*_SERVICE_*` and `*_PORT*` variables for a service named vllm; they are not
    mistakes.
    """
    for name in os.environ:
        if not name.startswith("VLLM_") or name in environment_variables:
            continue
        if "_SERVICE_" in name or "_PORT_" in name or name.endswith("_PORT"):
            continue
        message = f"{name} is set, but no vLLM variable has that name"
        if hard_fail:
            raise ValueError(message)
        print(message, file=sys.stderr)

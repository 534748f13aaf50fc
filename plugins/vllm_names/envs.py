"""The environment variables of vLLM, evaluated when they are read."""

import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from mainboard.plugins.filtering import allowed_from_environment
from mainboard.plugins.vllm_names.env_defaults import FLAGS, NUMBERS, TEXTS

__all__ = ["environment_variables", "is_set", "validate_environ"]

_TRUE = ("1", "true", "yes", "on")


def _text(name: str, default: str | None) -> str | None:
    return os.environ.get(name, default)


def _number(name: str, default: float | None) -> float | None:
    value = os.environ.get(name)
    if value is None:
        return default
    return float(value) if isinstance(default, float) else int(value)


def _flag(name: str, default: bool | None) -> bool | None:
    value = os.environ.get(name)
    return default if value is None else value.strip().lower() in _TRUE


def _lower(name: str, default: str) -> str:
    return os.environ.get(name, default).lower()


def _upper(name: str, default: str) -> str:
    return os.environ.get(name, default).upper()


def _items(name: str, default: list[str] | None) -> list[str] | None:
    value = os.environ.get(name)
    return default if value is None else [item for item in value.split(",") if item]


def _folder(name: str, variable: str, *default: str) -> str:
    """A folder below one of the user's XDG folders."""
    base = os.environ.get(variable) or os.path.join("~", default[0])
    return os.path.expanduser(os.environ.get(name) or os.path.join(base, *default[1:]))


def _cached(name: str, folder: str) -> str:
    """A folder below vLLM's cache."""
    return os.path.expanduser(
        os.environ.get(name) or os.path.join(environment_variables["VLLM_CACHE_ROOT"](), folder)
    )


def _temporary_folder() -> str:
    from tempfile import gettempdir

    return os.environ.get("VLLM_RPC_BASE_PATH") or gettempdir()


def _plugins() -> list[str] | None:
    names = allowed_from_environment().names
    return None if names is None else list(names)


# One dictionary, which plugins extend with `update`: whatever is in it is an attribute here.
environment_variables: dict[str, Callable[[], Any]] = {
    **{name: partial(_text, name, default) for name, default in TEXTS.items()},
    **{name: partial(_number, name, default) for name, default in NUMBERS.items()},
    **{name: partial(_flag, name, default) for name, default in FLAGS.items()},
    "VLLM_ASSETS_CACHE": partial(_cached, "VLLM_ASSETS_CACHE", "assets"),
    "VLLM_ATTENTION_BACKEND": partial(_text, "VLLM_ATTENTION_BACKEND", None),
    "VLLM_CACHE_ROOT": partial(_folder, "VLLM_CACHE_ROOT", "XDG_CACHE_HOME", ".cache", "vllm"),
    "VLLM_CONFIG_ROOT": partial(_folder, "VLLM_CONFIG_ROOT", "XDG_CONFIG_HOME", ".config", "vllm"),
    "VLLM_DISABLED_KERNELS": partial(_items, "VLLM_DISABLED_KERNELS", []),
    "VLLM_FLASHINFER_AUTOTUNE_SKIP_OPS": partial(_items, "VLLM_FLASHINFER_AUTOTUNE_SKIP_OPS", None),
    "VLLM_LOGGING_LEVEL": partial(_upper, "VLLM_LOGGING_LEVEL", "INFO"),
    "VLLM_PLUGINS": _plugins,
    "VLLM_RPC_BASE_PATH": _temporary_folder,
    "VLLM_TARGET_DEVICE": partial(_lower, "VLLM_TARGET_DEVICE", "cuda"),
    "VLLM_USE_V1": partial(_flag, "VLLM_USE_V1", True),
    "VLLM_XLA_CACHE_PATH": partial(_cached, "VLLM_XLA_CACHE_PATH", "xla_cache"),
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

"""The environment, addresses and ports of this machine, and functions that run once."""

import os
from collections.abc import Callable
from functools import wraps
from typing import Any

__all__ = [
    "get_distributed_init_method",
    "get_ip",
    "get_open_port",
    "run_once",
    "supports_kw",
    "update_environment_variables",
]


def update_environment_variables(envs_dict: dict[str, str]) -> None:
    """Set variables of this process, and say which had another value."""
    from mainboard.plugins.log import get_logger

    for name, value in envs_dict.items():
        before = os.environ.get(name)
        if before not in (None, value):
            get_logger().warning("%s was %r and is now %r.", name, before, value)
        os.environ[name] = value


def get_ip() -> str:
    """The address under which other machines find this one; `VLLM_HOST_IP` decides, if set."""
    if chosen := os.environ.get("VLLM_HOST_IP"):
        return chosen
    import socket

    # Connecting a datagram socket sends nothing; it only chooses the interface.
    for family, elsewhere in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect((elsewhere, 9))
                return str(probe.getsockname()[0])
            except OSError:
                continue
    return "0.0.0.0"


def get_open_port() -> int:
    """A port that is free now; `VLLM_PORT` and those after it are tried first, if set."""
    import socket

    first = int(os.environ.get("VLLM_PORT") or 0)
    for port in [*range(first, first + 64 if first else 0), 0]:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            try:
                probe.bind(("", port))
                return int(probe.getsockname()[1])
            except OSError:
                continue
    raise OSError("no port is free on this machine")


def get_distributed_init_method(ip: str, port: int) -> str:
    """The address of a rendezvous, as `torch.distributed` takes it."""
    return f"tcp://[{ip}]:{port}" if ":" in ip else f"tcp://{ip}:{port}"


def run_once(f: Callable[..., None]) -> Callable[..., None]:
    """A function that does its work the first time and nothing ever after."""
    ran = False

    @wraps(f)
    def once(*args: Any, **kwargs: Any) -> None:
        nonlocal ran
        if not ran:
            ran = True
            f(*args, **kwargs)

    return once


def supports_kw(callable: Callable[..., Any], kw_name: str, **options: bool) -> bool:
    """Whether a function takes an argument of this name.

    Args:
        callable: the function.
        kw_name: the argument.
        options: `requires_kw_only=True` wants it by name only, and `allow_var_kwargs=False` does
            not count `**kwargs`.
    """
    import inspect

    parameters = inspect.signature(callable).parameters
    if kw_name in parameters:
        kind = parameters[kw_name].kind
        if options.get("requires_kw_only"):
            return kind is inspect.Parameter.KEYWORD_ONLY
        return kind in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    open_ended = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    return open_ended and options.get("allow_var_kwargs", True)

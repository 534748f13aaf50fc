"""Call platforms that were written for another release of the contract.

Packages in use define `get_attn_backend_cls` in nine forms, lack members that came later, and keep
members that went. A call from here passes what the function takes; `drift` says what differs.
Nothing is asked with `hasattr`: a platform derived from vLLM's class answers any name with None.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from mainboard.errors import PlatformContractError
from mainboard.platforms.interface import Platform

__all__ = [
    "RETIRED",
    "Drift",
    "attention_backend",
    "call_hook",
    "call_with",
    "drift",
    "find_member",
]

_ABSENT = object()
_NO_DEFAULT = inspect.Parameter.empty
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)

RETIRED: Mapping[str, str] = {
    "get_device_count": "device_count",
    "get_device_available_memory": "mem_get_info",
    "get_piecewise_backend_cls": "get_static_graph_wrapper_cls",
    "insert_blocks_to_device": "",
    "is_async_output_supported": "",
    "is_kv_cache_dtype_supported": "AttentionBackend.validate_configuration",
    "seed_everything": "manual_seed_all",
    "supports_structured_output": "",
    "supports_v1": "",
    "swap_out_blocks_to_host": "",
}
"""Members that platforms still define and nobody calls, with what is asked instead, if anything."""

# What the older forms of `get_attn_backend_cls` take one by one is in today's configuration;
# these are the values for one that does not say.
_OLDER_ARGUMENTS: Mapping[str, Any] = {
    "head_size": None,
    "dtype": None,
    "kv_cache_dtype": None,
    "block_size": None,
    "use_mla": False,
    "has_sink": False,
    "use_sparse": False,
    "attn_type": "decoder",
    "use_v1": True,
    "is_training": False,
}


class Drift(NamedTuple):
    """One difference between a platform's class and today's contract.

    Args:
        member: which member.
        kind: `missing`, `retired` or `signature`.
        detail: what is so, and what is done about it, as one sentence.
    """

    member: str
    kind: str
    detail: str


def find_member(platform: Any, name: str, default: Any = None) -> Any:
    """The member that the platform or its class defines; `__getattr__` does not count.

    Args:
        platform: a platform object or class.
        name: the member.
        default: what to return when there is none.
    """
    if inspect.getattr_static(platform, name, _ABSENT) is _ABSENT:
        return default
    return getattr(platform, name)


def call_with(
    function: Callable[..., Any],
    *positional: Any,
    current: Mapping[str, Any],
    older: Mapping[str, Any] | None = None,
) -> Any:
    """Call a function with those arguments that it takes.

    Args:
        function: what to call; one whose signature Python does not know gets all of `current`.
        positional: arguments that every form of the function takes first.
        current: today's further arguments, by name; a function with `**kwargs` gets all of them.
        older: arguments that went, by name; only a function that names one gets it.

    Raises:
        PlatformContractError: the function requires an argument that nobody offers.
    """
    try:
        signature = inspect.signature(function)
    except ValueError:
        return function(*positional, **current)
    offered = {**(older or {}), **current}
    arguments, named = list(positional), {}
    parameters = list(signature.parameters.values())
    taken = [each for each in parameters if each.kind in _POSITIONAL][: len(positional)]
    for parameter in parameters:
        if parameter in taken:
            continue
        if parameter.kind is parameter.VAR_KEYWORD:
            named.update({name: offered[name] for name in current})
        elif parameter.kind is parameter.VAR_POSITIONAL:
            continue
        elif parameter.name in offered:
            if parameter.kind is parameter.POSITIONAL_ONLY:
                arguments.append(offered[parameter.name])
            else:
                named[parameter.name] = offered[parameter.name]
        elif parameter.default is _NO_DEFAULT:
            raise PlatformContractError(
                f"{_name(function)}{signature} requires {parameter.name!r}, which nobody offers; it"
                f" can have {', '.join(offered)}. Give {parameter.name!r} a default, or take"
                " **kwargs."
            )
    return function(*arguments, **named)


def call_hook(platform: Any, name: str, *arguments: Any) -> Any:
    """Call a member of the contract on any platform, with today's arguments.

    A platform that lacks the member gets the contract's default, and one whose function takes
    other arguments gets those that it names.

    Args:
        platform: a platform object, which may derive from vLLM's own base.
        name: a method of `mainboard.platforms.Platform`.
        arguments: its arguments, in the contract's order.
    """
    ours = _names(getattr(Platform, name))
    function = find_member(platform, name)
    if function is None:
        function = getattr(_completed(type(platform)), name)
        if inspect.isfunction(function):
            function = function.__get__(platform)
    if not callable(function):
        raise PlatformContractError(
            f"{type(platform).__name__}.{name} is {function!r}, which cannot be called; the"
            f" contract has {name}({', '.join(ours)})"
        )
    theirs = _names(function)
    # A parameter under another name is the same one, unless the contract has that name elsewhere.
    leading = 0
    for our, their in zip(ours[: len(arguments)], theirs, strict=False):
        if our != their and (our in theirs or their in ours):
            break
        leading += 1
    if leading == len(theirs) and _takes_any_number(function):
        leading = len(arguments)
    rest = dict(zip(ours[leading:], arguments[leading:], strict=False))
    return call_with(function, *arguments[:leading], current=rest)


def attention_backend(
    platform: Any, selected_backend: Any, config: Any, num_heads: int | None = None
) -> str | type[Any] | None:
    """The attention backend that the platform names, whichever form its method has.

    Args:
        platform: a platform object or class.
        selected_backend: what the user asked for, or None.
        config: the attention configuration; older forms get its fields one by one.
        num_heads: of queries, for forms that take it.

    Returns:
        A path or a class; None where the platform has no backend, which platforms also say with
        an empty string.

    Raises:
        PlatformContractError: the answer is neither.
    """
    method = find_member(platform, "get_attn_backend_cls")
    if method is None:
        return None
    answer = call_with(
        method,
        selected_backend,
        current={"attn_selector_config": config, "num_heads": num_heads},
        older={
            **{name: getattr(config, name, value) for name, value in _OLDER_ARGUMENTS.items()},
            "config": config,
        },
    )
    # A member of an enumeration of backends stands for its class.
    if not isinstance(answer, type) and callable(path := find_member(answer, "get_path")):
        answer = path()
    if answer is None or answer == "":
        return None
    if isinstance(answer, (str, type)):
        return answer
    raise PlatformContractError(
        f"{_name(method)} returned {answer!r}; expected 'package.module.Class', a class, or '' or"
        " None where there is no attention backend"
    )


def drift(platform: Any) -> list[Drift]:
    """How a platform differs from today's contract; an empty list when it does not.

    Args:
        platform: a platform object or class.
    """
    cls = platform if isinstance(platform, type) else type(platform)
    found = []
    for name, ours in inspect.getmembers(Platform):
        if name.startswith("_") or not callable(ours) or isinstance(ours, type):
            continue
        theirs = find_member(cls, name, _ABSENT)
        if theirs is _ABSENT:
            detail = f"{cls.__name__} has no {name}; the contract's default answers."
            found.append(Drift(name, "missing", detail))
        elif detail := _signature_drift(ours, theirs):
            found.append(Drift(name, "signature", f"{cls.__name__}.{name} {detail}"))
    for name, instead in RETIRED.items():
        if find_member(cls, name, _ABSENT) is not _ABSENT:
            detail = f"{cls.__name__} defines {name}, which nobody calls"
            found.append(Drift(name, "retired", detail + (f"; see {instead}." if instead else ".")))
    return found


def _signature_drift(ours: Callable[..., Any], theirs: Any) -> str:
    """What differs, as the end of a sentence; nothing when today's call is served."""
    if not callable(theirs):
        return f"is {theirs!r}, not a function."
    try:
        signature = inspect.signature(theirs)
    except ValueError:
        return ""
    own = [each for each in signature.parameters.values() if each.name != "self"]
    wanted = _names(ours)
    try:
        signature.replace(parameters=own).bind(*wanted)
    except TypeError as error:
        return f"takes {signature} ({error}); it gets the arguments that it names."
    renamed = [
        f"{our!r} {their!r}"
        for our, their in zip(wanted, _names(theirs), strict=False)
        if our != their
    ]
    return f"calls {' and '.join(renamed)}; it gets them by position." if renamed else ""


def _names(function: Callable[..., Any]) -> list[str]:
    """The parameters that can be given by position, without `self`."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:
        return []
    return [each.name for each in parameters if each.kind in _POSITIONAL and each.name != "self"]


def _takes_any_number(function: Callable[..., Any]) -> bool:
    parameters = inspect.signature(function).parameters.values()
    return any(each.kind is each.VAR_POSITIONAL for each in parameters)


def _completed(cls: type[Any]) -> type[Any]:
    """The class with the contract's defaults behind its own members."""
    return cls if issubclass(cls, Platform) else type(cls.__name__, (cls, Platform), {})


def _name(function: Any) -> str:
    return str(getattr(function, "__qualname__", function))

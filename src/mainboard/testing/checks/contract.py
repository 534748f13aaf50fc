"""Checks of the class: its members, what they take, and what kind of answer they give."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
import re
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from typing import Any

from mainboard.platforms.interface import Platform
from mainboard.platforms.values import Capabilities, DeviceCapability, MemoryInfo, PlatformEnum
from mainboard.testing.check import NotOffered, check
from mainboard.testing.subject import Subject

__all__ = ["signature_fault"]

_KINDS: dict[str, tuple[type, ...]] = {"bool": (bool,), "int": (int,), "str": (str,)}
_KINDS["float"] = (float, int)

_PATHS = (
    "get_device_communicator_cls",
    "get_punica_wrapper",
    "get_static_graph_wrapper_cls",
    "get_pass_manager_cls",
)

_TEXTS = ("device_name", "device_type", "dispatch_key", "ray_device_key", "dist_backend",
          "device_control_env_var", "simple_compile_backend")  # fmt: skip


def _members() -> list[str]:
    return [name for name in dir(Platform) if not name.startswith("_")]


def _overridden(cls: type) -> list[str]:
    """The contract's members that a class, or a base of it outside the contract, defines."""
    owners = {
        name: next((owner for owner in cls.__mro__ if name in vars(owner)), None)
        for name in _members()
    }
    return [name for name, owner in owners.items() if owner and owner not in Platform.__mro__]


@check("contract.identity", "the platform says who it is")
def identity(subject: Subject) -> Iterator[str]:
    """Names are words, and torch knows the device type and the dispatch key."""
    import torch

    platform = subject.platform
    for name in _TEXTS:
        if not isinstance(value := getattr(platform, name), str):
            yield f"{name} is {value!r}, not a string"
    if not platform.device_name or not platform.device_type:
        yield f"device_name is {platform.device_name!r} and device_type {platform.device_type!r}"
    kind = platform._enum
    if type(kind).__name__ != PlatformEnum.__name__ or kind.name == "UNSPECIFIED":
        yield f"_enum is {kind!r}; a platform of its own kind is OOT"
    if platform.device_type != platform.device_type.lower():
        yield f"device_type is {platform.device_type!r}; torch's device types are in lower case"
    try:
        key = str(torch._C._dispatch_key_for_device(platform.device_type))
    except RuntimeError as error:
        yield f"torch knows no device type {platform.device_type!r}: {_first_line(error)}"
        return
    if platform.dispatch_key != key:
        yield (
            f"dispatch_key is {platform.dispatch_key!r}, but tensors of {platform.device_type!r} "
            f"dispatch to {key!r}"
        )


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]


@check("contract.members", "every member of the contract is there and of its kind")
def members(subject: Subject) -> Iterator[str]:
    """A class method stays callable on the class, a property stays readable, a text stays one."""
    cls = type(subject.platform)
    for name in _members():
        try:
            found = inspect.getattr_static(cls, name)
        except AttributeError:
            yield f"{name} is missing"
            continue
        yield from _kind_faults(name, inspect.getattr_static(Platform, name), found)


def _kind_faults(name: str, promised: Any, found: Any) -> Iterator[str]:
    if isinstance(promised, (str, list)):
        if not isinstance(found, type(promised)):
            yield f"{name} is a {type(found).__name__}; the contract has a {type(promised).__name__}"
    elif isinstance(promised, classmethod):
        if inspect.isfunction(found):
            yield f"{name} is an instance method; the contract calls it on the class: @classmethod"
        elif isinstance(found, property) or not callable(getattr(found, "__func__", found)):
            yield f"{name} is a {type(found).__name__}; the contract calls it"
    elif isinstance(promised, property):
        if callable(found) or isinstance(found, (classmethod, staticmethod)):
            yield f"{name} is called; the contract reads it: @property"
    elif inspect.isfunction(promised) and isinstance(found, property):
        yield f"{name} is a property; the contract calls it"


@check("contract.signatures", "every override takes what the contract's callers pass")
def signatures(subject: Subject) -> Iterator[str]:
    """By position, by name, and only what is required."""
    for name in _overridden(type(subject.platform)):
        fault = signature_fault(name, type(subject.platform))
        if fault:
            yield fault


def signature_fault(name: str, cls: type) -> str | None:
    """Why a call that the contract allows fails on an override, or None."""
    promised = inspect.getattr_static(Platform, name)
    if not isinstance(promised, (classmethod, staticmethod)) and not inspect.isfunction(promised):
        return None
    try:
        wanted = inspect.signature(getattr(Platform, name))
        found = inspect.signature(getattr(cls, name))
    except (TypeError, ValueError):  # written in C: it says nothing
        return None
    for arguments, named in _calls(wanted):
        try:
            found.bind(*arguments, **named)
        except TypeError as error:
            shown = ", ".join([*arguments, *(f"{key}=..." for key in named)])
            return f"{name}{_bare(found)} cannot be called as {name}({shown}): {error}"
    return None


def _bare(signature: inspect.Signature) -> str:
    empty = inspect.Parameter.empty
    parameters = [p.replace(annotation=empty) for p in signature.parameters.values()]
    return str(inspect.Signature(parameters))


def _calls(signature: inspect.Signature) -> Iterator[tuple[list[str], dict[str, str]]]:
    """The ways in which callers write a call, with names for values."""
    usual = [
        p for p in signature.parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    by_position = [p for p in usual if p.kind is not p.KEYWORD_ONLY]
    named = {p.name: p.name for p in usual if p.kind is p.KEYWORD_ONLY}
    yield [p.name for p in by_position], named
    yield [p.name for p in by_position if p.default is p.empty], named
    if by_position and by_position[0].name != "self":
        yield [], {p.name: p.name for p in usual}


@check("contract.names", "no public name looks like a misspelt member of the contract")
def names(subject: Subject) -> Iterator[str]:
    """An override under a wrong name is never called."""
    known = _members()
    for base in type(subject.platform).__mro__:
        if base in Platform.__mro__ or base.__module__.startswith("vllm."):
            continue
        for name in vars(base):
            close = get_close_matches(name, known, n=1, cutoff=0.93)
            if name not in known and not name.startswith("_") and close:
                yield f"{base.__name__}.{name} is not in the contract; did you mean {close[0]}?"


@check("contract.answers", "every question is answered with the type that the contract says")
def answers(subject: Subject) -> Iterator[str]:
    """All questions that need no argument are asked."""
    for name in _members():
        promised = inspect.getattr_static(Platform, name)
        if isinstance(promised, (classmethod, staticmethod)):
            promised = promised.__func__
        if not inspect.isfunction(promised):
            continue
        signature = inspect.signature(promised)
        kind = getattr(signature.return_annotation, "__name__", signature.return_annotation)
        required = [p for p in list(signature.parameters.values())[1:] if p.default is p.empty]
        if kind not in _KINDS or any(p.kind is not p.VAR_POSITIONAL for p in required):
            continue
        try:
            value = subject.ask(name)
        except NotOffered:
            continue
        except Exception as error:  # noqa: BLE001 - foreign code; its failure is the finding
            yield f"{name}() failed: {type(error).__name__}: {_first_line(error)}"
            continue
        if not isinstance(value, _KINDS[kind]) or (kind != "bool" and isinstance(value, bool)):
            yield f"{name}() is {value!r}; the contract says {kind}"


@check("contract.values", "capabilities, dtypes and generation are of their kinds")
def values(subject: Subject) -> Iterator[str]:
    """What is named exists in torch."""
    import torch

    capabilities = subject.ask("capabilities")
    if not isinstance(capabilities, Capabilities):
        yield f"capabilities() is {capabilities!r}, not a Capabilities"
        return
    for field in ("dtypes", "native_dtypes", "fp8_formats"):
        for name in getattr(capabilities, field):
            if not isinstance(getattr(torch, name, None), torch.dtype):
                yield f"capabilities().{field} has {name!r}, which is no dtype of torch"
    if not capabilities.dtypes:
        yield "capabilities().dtypes is empty: nothing can be computed"
    supported = subject.platform.supported_dtypes
    if not supported or not all(isinstance(dtype, torch.dtype) for dtype in supported):
        yield f"supported_dtypes is {supported!r}, not a list of torch dtypes"
    for name in subject.requirements.dtypes:
        if getattr(torch, name, name) not in supported:
            yield f"dtype {name} is promised, but is not among the supported ones"
    generation = subject.ask("get_device_capability")
    if generation is not None and not isinstance(generation, DeviceCapability):
        yield f"get_device_capability() is {generation!r}; expected None or a DeviceCapability"


@check("contract.paths", "every class that the platform names can be imported")
def paths(subject: Subject) -> Iterator[str]:
    """Empty says that there is none; a path is of the form package.module.Class."""
    from mainboard.platforms import resolve_obj_by_qualname

    for name in _PATHS:
        path = subject.ask(name)
        if not path:
            continue
        if not re.fullmatch(r"\w+(\.\w+)+", str(path)):
            yield f"{name}() is {path!r}; expected 'package.module.Class'"
            continue
        try:
            resolve_obj_by_qualname(path)
        except ImportError as error:
            if (error.name or "").partition(".")[0] != "vllm":  # an engine's base classes
                yield f"{name}() names {path}: {error}"


@check("contract.unknown", "an unknown attribute is an error, not None")
def unknown(subject: Subject) -> Iterator[str]:
    """Code asks `hasattr(platform, name)` to find out what there is."""
    if hasattr(subject.platform, "no_such_capability"):
        yield "hasattr(platform, 'no_such_capability') is true; __getattr__ must raise"


@check("contract.copies", "the platform can be copied, pickled and described")
def copies(subject: Subject) -> Iterator[str]:
    """Engines send it to workers, and the doctor prints it as JSON."""
    cls = type(subject.platform)
    ways: dict[str, Callable[[Any], Any]] = {
        "copy.deepcopy": copy.deepcopy,
        "pickle": lambda platform: pickle.loads(pickle.dumps(platform)),
    }
    for how, make in ways.items():
        try:
            other = make(subject.platform)
        except Exception as error:  # noqa: BLE001 - foreign code; its failure is the finding
            yield f"{how} failed: {type(error).__name__}: {_first_line(error)}"
            continue
        if type(other) is not cls:
            yield f"{how} gives a {type(other).__name__}"
    json.dumps(subject.ask("describe"))


@check("contract.memory_info", "mem_get_info() is (free, total) in bytes", feature="memory")
def memory_info(subject: Subject) -> Iterator[str]:
    """A named pair of whole numbers, the free ones first."""
    info = subject.ask("mem_get_info")
    if not isinstance(info, MemoryInfo) or not all(isinstance(size, int) for size in info):
        yield f"mem_get_info() is {info!r}; expected a MemoryInfo of two whole numbers"
    elif not 0 <= info.free <= info.total:
        yield f"mem_get_info() says {info.free} bytes are free of {info.total}"

"""Resolve `current_platform` once per process, and the scopes in which it is another."""

from __future__ import annotations

import os
import sys
from functools import wraps

from mainboard.errors import PlatformError
from mainboard.light_typing import TYPE_CHECKING, NamedTuple
from mainboard.platforms.candidates import Candidate, candidates
from mainboard.platforms.decision import Request, Selection, answers_to, decide, request_from
from mainboard.platforms.verdict import BUILT_IN, State, Verdict
from mainboard.plugins.loading import PLATFORM_PLUGINS_GROUP, load_plugins_by_group
from mainboard.plugins.log import debug, get_logger
from mainboard.plugins.turn import running, turn
from mainboard.plugins.worker import PARENT_PLATFORM

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, ParamSpec, TypeVar

    from mainboard.platforms.interface import Platform

    _Arguments = ParamSpec("_Arguments")
    _Result = TypeVar("_Result")

__all__ = [
    "adopt",
    "current",
    "forget",
    "identity",
    "resolve_current_platform_cls_qualname",
    "resolve_obj_by_qualname",
    "selection",
    "survey",
    "use_platform",
]


class _Board(NamedTuple):
    """The platform in use and the decision that put it there."""

    platform: Platform
    selection: Selection


_board: _Board | None = None
_resolving = False


def _after_fork_in_child() -> None:
    global _resolving
    _resolving = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def _alone(work: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Make a function take its turn, and refuse the plugin that asks it what it is asked itself."""

    @wraps(work)
    def alone(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        global _resolving
        with turn():
            if _resolving:
                raise PlatformError(
                    f"The current platform was asked for by {running() or 'a candidate'}, while"
                    " platforms are being resolved. Ask for it where it is used, not while the"
                    " plugin or its platform class is imported or called."
                )
            _resolving = True
            try:
                return work(*args, **kwargs)
            finally:
                _resolving = False

    return alone


def current() -> Platform:
    """The platform of this process, resolved now if nobody has asked before.

    Raises:
        PlatformError: when no platform can be chosen.
    """
    with turn():
        if _board is None:
            _put(_resolve(request_from(os.environ)))
        assert _board is not None
        return _board.platform


def selection() -> Selection:
    """The decision behind `current_platform`; one without a choice is returned, not raised."""
    with turn():
        if _board is None:
            platform, decision, _ = _choose(request_from(os.environ))
            if platform is None:
                return decision
            _put(_Board(platform, decision))
        assert _board is not None
        return _board.selection


@_alone
def survey() -> tuple[Verdict, ...]:
    """Every candidate's verdict, also of those that the choice did not depend on."""
    found = candidates(_replacement())
    for candidate in found:
        candidate.probe()
    return tuple(candidate.verdict for candidate in found)


def identity() -> str:
    """The platform in use as one line: its name, its provider, and its class."""
    platform = current()
    assert _board is not None
    cls, chosen = type(platform), _board.selection.chosen
    label = f"{chosen.label} ({chosen.provider}" if chosen else f"{platform.device_name} (replaced"
    return f"{label}: {cls.__module__}.{cls.__qualname__})"


class use_platform:
    """Let `current_platform` be another one in this block, for the whole process.

    Code that holds the object itself, by `from mainboard.platforms import current_platform`, keeps
    what it has: read it through the module where it may change.

    Args:
        platform: a name as for `MAINBOARD_PLATFORM`, or a platform object.

    Raises:
        PlatformError: when the platform of that name cannot be used.
    """

    def __init__(self, platform: str | Platform) -> None:
        self._wanted = platform
        self._before: list[_Board | None] = []

    def __enter__(self) -> Platform:
        wanted = self._wanted
        with turn():
            if isinstance(wanted, str):
                board = _resolve(Request(wanted, f"use_platform({wanted!r})"))
            else:
                board = _replaced(wanted, "use_platform() was given this object.")
            self._before.append(_board)
            _put(board)
        return board.platform

    def __exit__(self, *raised: object) -> None:
        with turn():
            _put(self._before.pop())


def adopt(platform: Platform | None) -> None:
    """Use this object as `current_platform`; None forgets the choice until it is needed again."""
    with turn():
        reason = "It was put in the place of the chosen one."
        _put(None if platform is None else _replaced(platform, reason))


def forget() -> None:
    """Forget the choice, so that the next use makes it again (for tests)."""
    adopt(None)


def resolve_current_platform_cls_qualname() -> str:
    """The path of the class of `current_platform`."""
    cls = type(current())
    return f"{cls.__module__}.{cls.__qualname__}"


def resolve_obj_by_qualname(qualname: str) -> Any:
    """The object that `package.module.name` names.

    Raises:
        ImportError: when the module, or the name in it, does not exist.
    """
    from importlib import import_module

    module, _, name = qualname.rpartition(".")
    if not module:
        raise ImportError(f"{qualname!r} names no module; expected 'package.module.name'")
    try:
        return getattr(import_module(module), name)
    except AttributeError as error:
        # As an ImportError: from a module's `__getattr__`, an AttributeError would be lost.
        raise ImportError(f"module {module!r} has no {name!r}", path=qualname) from error


def _replaced(platform: Platform, reason: str) -> _Board:
    cls = type(platform)
    verdict = Verdict(
        getattr(platform, "device_name", "") or cls.__name__,
        f"{cls.__module__} (object)",
        State.ACTIVATED,
        "given",
        reason,
        value=f"{cls.__module__}.{cls.__qualname__}",
    )
    return _Board(platform, Selection(verdict, "given", reason, (verdict,)))


def _put(board: _Board | None) -> None:
    """Make the board the one in use, as a plain attribute of the package and for children."""
    global _board
    _board = board
    package = vars(sys.modules["mainboard.platforms"])
    if board is None:
        package.pop("current_platform", None)
        os.environ.pop(PARENT_PLATFORM, None)
    else:
        package["current_platform"] = board.platform
        os.environ[PARENT_PLATFORM] = identity()


def _resolve(request: Request | None) -> _Board:
    platform, decision, cause = _choose(request)
    if platform is None:
        assert decision.error is not None
        raise decision.error from cause
    return _Board(platform, decision)


@_alone
def _choose(
    request: Request | None,
) -> tuple[Platform | None, Selection, BaseException | None]:
    """Probe as many candidates as the decision needs, and build the chosen one."""
    found = candidates(_replacement())
    for candidate in _asked_first(found, request):
        candidate.probe()
    while True:
        decision = decide((candidate.verdict for candidate in found), request)
        if decision.chosen is not None:
            platform = _of(found, decision.chosen).build()
            if platform is None:
                continue
            debug("%s", decision.reason)
            for warning in decision.warnings:
                get_logger().warning("%s", warning)
            return platform, decision, None
        remaining = [each for each in found if each.verdict.state is State.NOT_PROBED]
        if request is not None or decision.rule != "none" or not remaining:
            named = answers_to(request.name, decision.verdicts) if request else []
            cause = _of(found, named[0]).error if len(named) == 1 else None
            return None, decision, cause
        remaining[0].probe()


def _asked_first(found: list[Candidate], request: Request | None) -> list[Candidate]:
    """The one that was asked for, or else every out-of-tree platform: two active are an error."""
    if request is None:
        return [candidate for candidate in found if candidate.verdict.provider != BUILT_IN]
    named = answers_to(request.name, [candidate.verdict for candidate in found])
    return [_of(found, named[0])] if len(named) == 1 else []


def _of(found: list[Candidate], verdict: Verdict) -> Candidate:
    return next(candidate for candidate in found if candidate.verdict is verdict)


def _replacement() -> dict[str, Any] | None:
    """What stands for the installed platform plugins, if a host put something in their place."""
    replaced = vars(sys.modules["mainboard.platforms"]).get("load_plugins_by_group")
    if replaced is None or replaced is load_plugins_by_group:
        return None
    functions: dict[str, Any] = replaced(PLATFORM_PLUGINS_GROUP)
    return functions

"""Which attention backend serves a configuration, with the reasons of every candidate.

Asked for by name, a backend is used or is an error. Otherwise the candidates are those registered
for the platform's devices and the one that the platform itself names, by priority; the first that
gives no reason against the configuration is used.
"""

from __future__ import annotations

import inspect
import os
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from mainboard.errors import UnsupportedConfigurationError
from mainboard.kernels.backends import registry
from mainboard.kernels.backends.interface import AttentionType
from mainboard.kernels.backends.registry import (
    AttentionBackendEnum,
    RegisteredBackend,
    registered_backends,
)
from mainboard.platforms.foreign_calls import attention_backend, call_hook, call_with

if TYPE_CHECKING:
    from mainboard.platforms import Platform

__all__ = [
    "SETTING",
    "AttentionSelectorConfig",
    "BackendCandidate",
    "BackendSelection",
    "BackendState",
    "select_attention_backend",
]

SETTING = "MAINBOARD_ATTENTION_BACKEND"


class AttentionSelectorConfig(NamedTuple):
    """What attention is needed for; names and defaults are vLLM's."""

    head_size: int
    dtype: torch.dtype
    kv_cache_dtype: str | None = None
    block_size: int | None = None
    use_mla: bool = False
    has_sink: bool = False
    use_sparse: bool = False
    use_mm_prefix: bool = False
    use_per_head_quant_scales: bool = False
    attn_type: str = AttentionType.DECODER
    use_non_causal: bool = False


class BackendState(StrEnum):
    """What became of a candidate."""

    CHOSEN = "chosen"
    USABLE = "usable"
    REFUSED = "refused"
    FAILED = "failed"
    BY_NAME_ONLY = "by name only"


class BackendCandidate(NamedTuple):
    """One backend's answer: `reasons` says what speaks against it."""

    name: str
    path: str
    provider: str
    priority: int | None
    state: BackendState
    reasons: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Everything above as plain JSON types."""
        return {**self._asdict(), "state": str(self.state), "reasons": list(self.reasons)}


class BackendSelection(NamedTuple):
    """The backend that was chosen, by which rule, and every candidate in order of preference."""

    name: str
    backend: type[Any]
    rule: str
    candidates: tuple[BackendCandidate, ...]
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Everything above as plain JSON types."""
        return {
            "name": self.name,
            "backend": f"{self.backend.__module__}.{self.backend.__qualname__}",
            "rule": self.rule,
            "candidates": [candidate.to_dict() for candidate in self.candidates],
            "warnings": list(self.warnings),
        }

    def explain_text(self) -> str:
        """The choice for people: each candidate with its reasons."""
        lines = [f"Attention backend: {self.name} ({self.rule})"]
        for candidate in self.candidates:
            lines.append(f"  {candidate.name}  {candidate.state}  ({candidate.path})")
            lines += [f"    - {reason}" for reason in candidate.reasons]
        return "\n".join([*lines, *(f"Warning: {warning}" for warning in self.warnings)])


class _Looked(NamedTuple):
    """A candidate, with its class when there is one."""

    candidate: BackendCandidate
    backend: type[Any] | None


def select_attention_backend(
    config: AttentionSelectorConfig,
    *,
    num_heads: int | None = None,
    backend: AttentionBackendEnum | str | None = None,
    platform: Platform | None = None,
) -> BackendSelection:
    """The best attention backend for a configuration.

    Args:
        config: what attention is needed for.
        num_heads: how many query heads a device has, where the platform wants to know.
        backend: the one to use, by name; `MAINBOARD_ATTENTION_BACKEND` by default.
        platform: `current_platform` by default.

    Raises:
        UnsupportedConfigurationError: no candidate serves the configuration, or not the one that
            was asked for; `reasons` has every reason of every candidate.
    """
    here = platform or _current_platform()
    wanted = backend.name if isinstance(backend, AttentionBackendEnum) else backend
    setting = f"backend={wanted!r}"
    if not wanted and (wanted := os.environ.get("MAINBOARD_ATTENTION_BACKEND", "").strip()):
        setting = f"{SETTING}={wanted}"
    if wanted:
        named = _named(wanted, config, num_heads, here)
        looked = [_look(each, config, here) for each in named]
        return _decide(looked, config, f"{setting} asks for it", setting)
    looked = [_look(each, config, here) for each in _in_order(config, num_heads, here)]
    selection = _decide(looked, config, "the first that serves the configuration", None)
    return selection._replace(warnings=_costs(looked, selection, config, here))


def _current_platform() -> Platform:
    from mainboard.platforms import current_platform

    return current_platform


def _in_order(
    config: AttentionSelectorConfig, num_heads: int | None, platform: Platform
) -> list[RegisteredBackend]:
    """Those registered for this platform's devices, and the platform's own at its place."""
    found = [
        each
        for each in registered_backends()
        if each.device_types is None or platform.device_type in each.device_types
    ]
    own = _platforms_own(None, config, num_heads, platform)
    if own is None or any(each.path == own.path and each.priority is not None for each in found):
        return found
    place = sum(1 for each in found if (each.priority or 0) > registry.PLATFORM)
    return [*found[:place], own, *found[place:]]


def _named(
    wanted: str, config: AttentionSelectorConfig, num_heads: int | None, platform: Platform
) -> list[RegisteredBackend]:
    """What is registered under a name, or what the platform itself has under it."""
    registered = [each for each in registered_backends() if each.name == wanted]
    if registered:
        return registered
    member = AttentionBackendEnum.__members__.get(wanted)
    own = _platforms_own(member, config, num_heads, platform) if member else None
    if own is not None:
        return [own._replace(name=wanted)]
    from difflib import get_close_matches

    names = [each.name for each in registered_backends()]
    close = get_close_matches(wanted, names, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise UnsupportedConfigurationError(
        f"attention backend {wanted!r} was asked for, but none of that name is registered.{hint} "
        f"Registered are {', '.join(names)}"
    )


def _platforms_own(
    selected: AttentionBackendEnum | None,
    config: AttentionSelectorConfig,
    num_heads: int | None,
    platform: Platform,
) -> RegisteredBackend | None:
    """What the platform names; '' and None say that it names none."""
    provider = type(platform).__module__
    try:
        answer = attention_backend(platform, selected, config, num_heads)
    except Exception as error:  # noqa: BLE001 - foreign code; the cause becomes its reason
        name = f"{type(platform).__name__}.get_attn_backend_cls"
        return RegisteredBackend(name, name, registry.PLATFORM, None, provider, _Broken(error))
    if answer is None:
        return None
    target = answer if isinstance(answer, type) else None
    path = answer if isinstance(answer, str) else f"{answer.__module__}.{answer.__qualname__}"
    name = path.replace(":", ".").rpartition(".")[2]
    return RegisteredBackend(name, path, registry.PLATFORM, None, provider, target)


class _Broken:
    """Stands for the backend that a platform failed to name."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def validate_configuration(self, *arguments: Any, **named: Any) -> list[str]:
        """Raise what the platform raised."""
        raise self.error


def _look(
    registered: RegisteredBackend, config: AttentionSelectorConfig, platform: Platform
) -> _Looked:
    """Load a candidate and ask it for its reasons; what it raises is one."""
    name, path, priority, devices, provider, _ = registered
    made = BackendCandidate(name, path, provider, priority, BackendState.REFUSED)
    if devices is not None and platform.device_type not in devices:
        where = ", ".join(sorted(devices))
        return _Looked(made._replace(reasons=(f"for {where}, not {platform.device_type}",)), None)
    try:
        backend = registered.load()
        reasons = tuple(_reasons(backend, config, platform))
    except Exception as error:  # noqa: BLE001 - foreign code; the cause becomes its reason
        why = f"{type(error).__name__}: {error}"
        return _Looked(made._replace(state=BackendState.FAILED, reasons=(why,)), None)
    state = BackendState.REFUSED if reasons else BackendState.USABLE
    return _Looked(made._replace(state=state, reasons=reasons), backend)


def _reasons(backend: Any, config: AttentionSelectorConfig, platform: Platform) -> list[str]:
    """What a backend has against a configuration, also one whose method is older or newer."""
    wanted = config._asdict()
    needed = [wanted.pop(name) for name in ("head_size", "dtype", "kv_cache_dtype", "block_size")]
    wanted["device_capability"] = call_hook(platform, "get_device_capability")
    reasons = list(call_with(backend.validate_configuration, *needed, current=wanted))
    parameters = inspect.signature(backend.validate_configuration).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return reasons
    unasked = [name for name, value in wanted.items() if value is True and name not in parameters]
    return [*reasons, *(f"its validate_configuration knows no {name}" for name in unasked)]


def _decide(
    looked: list[_Looked], config: AttentionSelectorConfig, rule: str, setting: str | None
) -> BackendSelection:
    candidates = []
    chosen: _Looked | None = None
    for each in looked:
        candidate = each.candidate
        if setting is None and candidate.priority is None:
            candidate = candidate._replace(state=BackendState.BY_NAME_ONLY)
        elif chosen is None and candidate.state is BackendState.USABLE:
            candidate = candidate._replace(state=BackendState.CHOSEN)
            chosen = _Looked(candidate, each.backend)
        candidates.append(candidate)
    if chosen is None or chosen.backend is None:
        why = [
            f"{each.name} ({each.provider}): {reason}"
            for each in candidates
            if each.state is not BackendState.BY_NAME_ONLY
            for reason in each.reasons
        ]
        what = f"{setting} was asked for, but it cannot serve" if setting else "nothing serves"
        raise UnsupportedConfigurationError(f"{what} {config}", why)
    return BackendSelection(chosen.candidate.name, chosen.backend, rule, tuple(candidates))


def _costs(
    looked: list[_Looked],
    selection: BackendSelection,
    config: AttentionSelectorConfig,
    platform: Platform,
) -> tuple[str, ...]:
    """Better backends that only the page size excludes."""
    better = []
    for each in looked:
        if each.candidate.name == selection.name or config.block_size is None:
            break
        if each.backend is not None and each.candidate.state is BackendState.REFUSED:
            free = config._replace(block_size=None)
            if not _reasons(each.backend, free, platform):
                better.append(
                    f"{each.candidate.name} is better, and only a page size of "
                    f"{config.block_size} excludes it; leave the size out, or take another"
                )
    return tuple(better)

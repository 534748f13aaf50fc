"""Which candidate becomes `current_platform`: a pure function over verdicts and a request.

The rules, in order: a platform asked for by name is used or is an error; exactly one active
out-of-tree platform is used, and several are an error; the first active built-in is used.
"""

from __future__ import annotations

from mainboard.errors import (
    PlatformConflictError,
    PlatformContractError,
    PlatformError,
    PlatformUnavailableError,
)
from mainboard.light_typing import TYPE_CHECKING, NamedTuple
from mainboard.platforms.verdict import State, Verdict
from mainboard.plugins.entry_points import normalize

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

__all__ = ["CONTRACT_CODES", "Request", "Selection", "answers_to", "decide", "request_from"]

# The reason codes of an answer that is no platform, in contrast to no usable platform.
CONTRACT_CODES = frozenset(
    {"value_not_a_class", "path_malformed", "class_missing", "not_a_class", "not_a_platform"}
)


class Request(NamedTuple):
    """A platform asked for by name, and where that was said."""

    name: str
    setting: str


class Selection(NamedTuple):
    """The whole decision: what was chosen, by which rule, and every candidate's verdict.

    Without a choice, `error` is what reading `current_platform` raises.
    """

    chosen: Verdict | None
    rule: str
    reason: str
    verdicts: tuple[Verdict, ...]
    warnings: tuple[str, ...] = ()
    request: Request | None = None
    error: PlatformError | None = None

    def to_dict(self) -> dict[str, Any]:
        """Everything above as plain JSON types."""
        error = self.error and {"type": type(self.error).__name__, "message": str(self.error)}
        return {
            "chosen": self.chosen and self.chosen.to_dict(),
            "rule": self.rule,
            "reason": self.reason,
            "verdicts": [verdict.to_dict() for verdict in self.verdicts],
            "warnings": list(self.warnings),
            "request": self.request and self.request._asdict(),
            "error": error,
        }

    def explain_text(self) -> str:
        """The decision for people: the choice, the rule, then each candidate with its reason."""
        if self.chosen:
            lines = [f"Platform: {self.chosen.label} ({self.chosen.value})"]
        else:
            lines = ["Platform: none"]
        lines += [f"Why: {self.reason}", "Candidates:"]
        width = max((len(verdict.label) for verdict in self.verdicts), default=0)
        for verdict in self.verdicts:
            lines.append(
                f"  {verdict.label:{width}}  {verdict.state:10}  {verdict.code}"
                f"  ({verdict.provider}, {verdict.milliseconds:.1f} ms)"
            )
            lines.append(f"  {'':{width}}  {verdict.reason}")
            if verdict.remedy and verdict.state is not State.ACTIVATED:
                lines.append(f"  {'':{width}}  {verdict.remedy}")
        return "\n".join([*lines, *(f"Warning: {warning}" for warning in self.warnings)])


def request_from(environment: Mapping[str, str]) -> Request | None:
    """What the environment asks for by name, if anything."""
    name = environment.get("MAINBOARD_PLATFORM", "").strip()
    if name:
        return Request(name, f"MAINBOARD_PLATFORM={name}")
    if environment.get("VLLM_TARGET_DEVICE", "").strip().lower() == "cpu":
        return Request("cpu", "VLLM_TARGET_DEVICE=cpu")
    return None


def answers_to(name: str, candidates: Sequence[Verdict]) -> list[Verdict]:
    """The candidates meant by `name` or `distribution/name`; a built-in before any plugin."""
    distribution, slash, plain = name.rpartition("/")
    if slash:
        return [
            candidate
            for candidate in candidates
            if not candidate.built_in
            and candidate.name == plain
            and normalize(candidate.distribution) == normalize(distribution)
        ]
    named = [candidate for candidate in candidates if candidate.name == name]
    return [candidate for candidate in named if candidate.built_in] or named


def decide(verdicts: Iterable[Verdict], request: Request | None = None) -> Selection:
    """Choose among the verdicts, which come in order of preference."""
    candidates = tuple(verdicts)
    if request is not None:
        return _requested(candidates, request)
    active = [verdict for verdict in candidates if verdict.state is State.ACTIVATED]
    foreign = [verdict for verdict in active if not verdict.built_in]
    if len(foreign) > 1:
        error = _conflict(foreign)
        return Selection(None, "out_of_tree", str(error), candidates, error=error)
    if not active:
        unusable = _none_usable(candidates)
        return Selection(None, "none", str(unusable), candidates, error=unusable)
    if foreign:
        chosen, rule = foreign[0], "out_of_tree"
        reason = f"{chosen.label} is the one active out-of-tree platform, which precedes built-ins."
    else:
        chosen, rule = active[0], "built_in"
        reason = f"{chosen.label} is the first built-in platform that is usable here."
    return Selection(chosen, rule, reason, candidates, _fallbacks(candidates, chosen))


def _requested(candidates: tuple[Verdict, ...], request: Request) -> Selection:
    named = answers_to(request.name, candidates)
    if len(named) == 1 and named[0].state is State.ACTIVATED:
        reason = f"{request.setting} asks for {named[0].label}."
        warnings = _namesakes(candidates, named[0], request)
        return Selection(named[0], "requested", reason, candidates, warnings, request)
    error = _refusal(named, candidates, request)
    return Selection(None, "requested", str(error), candidates, (), request, error)


def _refusal(
    named: Sequence[Verdict], candidates: Sequence[Verdict], request: Request
) -> PlatformError:
    if not named:
        return _unknown(candidates, request)
    if len(named) > 1:
        return _ambiguous(named, request)
    return _unusable(named[0], request)


def _namesakes(candidates: Sequence[Verdict], chosen: Verdict, request: Request) -> tuple[str, ...]:
    return tuple(
        f"{request.setting} means the built-in platform; {other.provider} offers one of the same"
        f" name, which {other.label} would choose."
        for other in candidates
        if chosen.built_in and other.name == chosen.name and not other.built_in
    )


def _fallbacks(candidates: Sequence[Verdict], chosen: Verdict) -> tuple[str, ...]:
    """What comes before the chosen one was there to be used: say so when it could not be."""
    return tuple(
        f"Platform {chosen.label} is used because {verdict.label} ({verdict.provider}) failed:"
        f" {verdict.reason} {verdict.remedy or ''}".rstrip()
        for verdict in candidates
        if verdict.state is State.FAILED and verdict is not chosen
    )


def _conflict(active: Sequence[Verdict]) -> PlatformConflictError:
    names = " and ".join(f"{verdict.label} ({verdict.provider})" for verdict in active)
    settings = " or ".join(f"MAINBOARD_PLATFORM={verdict.label}" for verdict in active)
    return PlatformConflictError(
        f"One out-of-tree platform can be used, but {len(active)} are active here: {names}. Choose"
        f" with {settings}, leave one out of VLLM_PLUGINS, or uninstall it."
    )


def _ambiguous(named: Sequence[Verdict], request: Request) -> PlatformConflictError:
    providers = " and ".join(verdict.provider for verdict in named)
    settings = " or ".join(verdict.label for verdict in named)
    return PlatformConflictError(
        f"{request.setting} was asked for, but {providers} both offer a platform of that name."
        f" Write {settings}."
    )


def _unusable(verdict: Verdict, request: Request) -> PlatformError:
    kind = PlatformContractError if verdict.code in CONTRACT_CODES else PlatformUnavailableError
    return kind(
        f"{request.setting} was asked for, but {verdict.label} ({verdict.provider}) cannot be used"
        f" here: {verdict.reason} {verdict.remedy or ''}".rstrip()
    )


def _unknown(candidates: Sequence[Verdict], request: Request) -> PlatformUnavailableError:
    from difflib import get_close_matches

    known = [
        name for verdict in candidates for name in dict.fromkeys((verdict.name, verdict.label))
    ]
    close = get_close_matches(request.name, known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return PlatformUnavailableError(
        f"{request.setting} was asked for, but no platform has that name.{hint} Platforms here:"
        f" {', '.join(verdict.label for verdict in candidates)}. Install the package that provides"
        " it, or correct or unset the setting."
    )


def _none_usable(candidates: Sequence[Verdict]) -> PlatformUnavailableError:
    reasons = "".join(f"\n  - {verdict.label}: {verdict.reason}" for verdict in candidates)
    return PlatformUnavailableError(
        f"No platform is usable here.{reasons}\nRepair one of them, or set MAINBOARD_PLATFORM=cpu."
    )

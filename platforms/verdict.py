"""What became of one candidate for `current_platform`, and why."""

from __future__ import annotations

from enum import StrEnum

from mainboard.light_typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Any

__all__ = ["BUILT_IN", "State", "Verdict"]

BUILT_IN = "built-in"


class State(StrEnum):
    """How far a candidate came."""

    ACTIVATED = "activated"
    DECLINED = "declined"
    FAILED = "failed"
    FILTERED = "filtered"
    NOT_PROBED = "not probed"


# A tuple, not a dataclass: `dataclasses` imports `inspect`, which alone costs half of what
# importing and resolving a platform may cost.
class Verdict(NamedTuple):
    """One candidate's answer to "can you run here?", with the reason.

    Args:
        name: what the candidate is called: `cuda`, `cpu`, or the entry point's name.
        provider: `built-in`, or the distribution and its version.
        state: how far it came.
        code: a stable identifier of the reason, such as `hardware_absent`.
        reason: the same as one sentence, for people.
        milliseconds: how long the candidate took to answer.
        value: where the platform's class is, when the candidate is activated.
        remedy: what to do when the answer was not the wanted one.
        traceback: the formatted traceback of what went wrong, if anything did.
    """

    name: str
    provider: str
    state: State
    code: str
    reason: str
    milliseconds: float = 0.0
    value: str | None = None
    remedy: str | None = None
    traceback: str | None = None

    @property
    def built_in(self) -> bool:
        """Whether Mainboard itself offers this candidate."""
        return self.provider == BUILT_IN

    @property
    def distribution(self) -> str:
        """The distribution that offers this candidate."""
        return "mainboard" if self.built_in else self.provider.partition(" ")[0]

    @property
    def label(self) -> str:
        """The name that `MAINBOARD_PLATFORM` understands without ambiguity."""
        return self.name if self.built_in else f"{self.distribution}/{self.name}"

    def to_dict(self) -> dict[str, Any]:
        """Everything above as plain JSON types."""
        return {
            "name": self.name,
            "provider": self.provider,
            "state": str(self.state),
            "code": self.code,
            "reason": self.reason,
            "milliseconds": round(self.milliseconds, 3),
            "value": self.value,
            "remedy": self.remedy,
            "traceback": self.traceback,
        }

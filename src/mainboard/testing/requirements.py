"""What a platform promises, beyond what every platform must do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

__all__ = ["FEATURES", "Requirements"]

FEATURES: Mapping[str, str] = MappingProxyType(
    {
        "streams": "streams of its own, and events that order work between them",
        "events": "events that measure time",
        "memory": "counts of the memory that is allocated, at most, free and in all",
        "pinned": "page-locked host memory",
        "uuid": "an id for each device that no other device has",
        "ids": "a control variable that chooses visible devices",
        "random": "a random generator of its own",
        "fork": "use in a child process that was forked after facts were asked for",
        "kernels": "implementations of the operators for its dispatch key",
        "causal_flags": "attention over sequences of which some are causal, in one call",
        "backend": "an attention backend of its own",
    }
)
"""What a platform may leave out, and what each is."""


@dataclass(frozen=True)
class Requirements:
    """What the checks demand of one platform.

    Args:
        platform: its name, as for `MAINBOARD_PLATFORM`; empty is the current platform.
        devices: the fewest devices that must be there.
        offers: those of `FEATURES` that must not be left out; what is not named here is checked
            where the platform has it, and skipped with the reason where it has not.
        dtypes: names of the torch dtypes that must be among the supported ones.
        operators: the operators that must have an implementation for the platform's dispatch key;
            without one, the reference runs.
        register_ms: the longest that the plugin may take to import and to answer.
        torch_in_register: whether the plugin may import torch to answer.
        tolerance: what the errors allowed of operators are multiplied by.
        drawn_cases: how many random cases each operator check adds to its fixed ones.
        memory_mib: how much device memory the checks of memory may use.
        skip: checks that are not run, each with the reason.
        known_faults: checks that fail, each with the reason; one that passes is then a fault.
    """

    platform: str = ""
    devices: int = 1
    offers: frozenset[str] = frozenset()
    dtypes: tuple[str, ...] = ()
    operators: frozenset[str] = frozenset()
    register_ms: float = 100.0
    torch_in_register: bool = False
    tolerance: float = 1.0
    drawn_cases: int = 20
    memory_mib: int = 32
    skip: Mapping[str, str] = field(default_factory=dict)
    known_faults: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a feature or a check that does not exist: it would never be looked at."""
        from mainboard.testing.check import all_checks

        object.__setattr__(self, "offers", frozenset(self.offers))
        object.__setattr__(self, "operators", frozenset(self.operators))
        for option, names, known in (
            ("offers", self.offers, FEATURES),
            ("skip", self.skip, all_checks()),
            ("known_faults", self.known_faults, all_checks()),
        ):
            for name in names:
                if name not in known:
                    raise ValueError(_unknown(option, name, list(known)))


def _unknown(option: str, name: str, known: list[str]) -> str:
    from difflib import get_close_matches

    close = get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else f"; expected {', '.join(known)}"
    return f"{option} names {name!r}, which does not exist{hint}"

"""The platform under test, and ways to ask it: here, or in an interpreter of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mainboard.errors import PlatformUnavailableError
from mainboard.testing.check import NotOffered
from mainboard.testing.requirements import Requirements

if TYPE_CHECKING:
    import torch

    from mainboard.platforms import Platform, Verdict
    from mainboard.plugins.plugin import Plugin

__all__ = ["Subject", "open_subject"]

_LIMIT_S = 120.0


class Subject:
    """One platform, as the checks see it.

    Args:
        platform: the object that `current_platform` is.
        verdict: how it was found.
        requirements: what is demanded of it.
        environment: that of new interpreters, as it was before any plugin ran.
    """

    def __init__(
        self,
        platform: Platform,
        verdict: Verdict,
        requirements: Requirements,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.platform = platform
        self.verdict = verdict
        self.requirements = requirements
        self.environment = dict(os.environ if environment is None else environment)

    @property
    def label(self) -> str:
        """The name by which another process finds it."""
        return self.verdict.label

    @cached_property
    def plugin(self) -> Plugin | None:
        """The plugin that offers it; a built-in platform has none."""
        from mainboard.plugins.loading import PLATFORM_PLUGINS_GROUP, plugins_of

        known = {each.entry.label: each for each in plugins_of(PLATFORM_PLUGINS_GROUP)}
        return known.get(self.label)

    @cached_property
    def registrations(self) -> list[dict[str, Any]]:
        """What the plugin's function did in three new interpreters."""
        if self.plugin is None:
            raise NotOffered("the platform is built in: no plugin offers it")
        return [self.fresh("register", self.label) for _ in range(3)]

    @cached_property
    def device(self) -> torch.device:
        """Its current device."""
        import torch

        return torch.device(self.platform.device_type)

    @property
    def on_host(self) -> bool:
        """Whether its tensors are the host's own."""
        return self.device.type == "cpu"

    @cached_property
    def device_count(self) -> int:
        """How many devices are visible."""
        count: int = self.ask("device_count")
        return count

    @cached_property
    def dtypes(self) -> list[torch.dtype]:
        """The floating-point dtypes that it says it supports and that the operators know."""
        import torch

        known = (torch.float32, torch.bfloat16, torch.float16)
        supported = self.platform.supported_dtypes
        return [dtype for dtype in known if dtype in supported]

    def ask(self, name: str, *arguments: Any, **named: Any) -> Any:
        """Read a member of the platform, and call it unless it is a class.

        Raises:
            NotOffered: the platform says that it has none.
        """
        try:
            member = getattr(self.platform, name)
            return member if isinstance(member, type) else member(*arguments, **named)
        except (NotImplementedError, PlatformUnavailableError) as error:
            raise NotOffered(str(error)) from error
        except AttributeError as error:
            if error.obj is not self.platform:
                raise
            raise NotOffered(str(error)) from error

    def elsewhere(self, reason: str) -> None:
        """Leave a check that means nothing where the device is the host.

        Raises:
            NotOffered: it is.
        """
        if self.on_host:
            raise NotOffered(reason)

    def fresh(
        self, function: str, *arguments: Any, environment: Mapping[str, str | None] | None = None
    ) -> dict[str, Any]:
        """Run a function of `mainboard.testing.child` in a new interpreter.

        Args:
            function: its name.
            arguments: plain JSON types.
            environment: variables to set, or with None to take away.

        Returns:
            What it returned; `{"error": ...}` when it raised, died or gave no answer in time.
        """
        variables = dict(self.environment)
        variables |= {"MAINBOARD_PLATFORM": self.label, "PYTHONPATH": os.pathsep.join(sys.path)}
        for name, value in (environment or {}).items():
            variables.pop(name, None)
            if value is not None:
                variables[name] = value
        command = [sys.executable, "-P", "-m", "mainboard.testing.child", function]
        command.append(json.dumps(arguments))
        try:
            ran = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
                text=True,
                env=variables,
                timeout=_LIMIT_S,
            )
        except subprocess.TimeoutExpired:
            return {"error": f"no answer in {_LIMIT_S:.0f} s; the process was killed"}
        lines = ran.stdout.splitlines()
        if ran.returncode == 0 and lines:
            answer: dict[str, Any] = json.loads(lines[-1])
            return answer
        last = (ran.stderr.strip().splitlines() or ["nothing on stderr"])[-1]
        return {"error": f"the process ended with status {ran.returncode}: {last}"}


@contextmanager
def open_subject(requirements: Requirements) -> Iterator[Subject]:
    """Make the platform the current one in this block, with plugins and its kernels loaded.

    Raises:
        PlatformError: it cannot be used here.
    """
    from mainboard import platforms
    from mainboard.plugins import load_general_plugins

    environment = dict(os.environ)
    load_general_plugins()
    name = requirements.platform
    with (
        platforms.use_platform(name)
        if name
        else nullcontext(platforms.current_platform) as platform
    ):
        verdict = platforms.selection().chosen
        assert verdict is not None
        platform.import_kernels()
        yield Subject(platform, verdict, requirements, environment)

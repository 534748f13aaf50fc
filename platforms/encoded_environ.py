"""An environment other than the process's own, asked as that is asked soonest: by bytes."""

from __future__ import annotations

import os
from collections.abc import Mapping

from mainboard.light_typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["EncodedEnviron"]


class EncodedEnviron(Mapping[bytes, str]):
    """An environment whose variables are named in bytes."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def __getitem__(self, name: bytes) -> str:
        return self._environ[os.fsdecode(name)]

    def __iter__(self) -> Iterator[bytes]:
        return map(os.fsencode, self._environ)

    def __len__(self) -> int:
        return len(self._environ)

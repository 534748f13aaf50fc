"""Launches that cost the host little: a kernel, its grid and its numbers, ready for pointers.

Triton's own launch looks at every argument anew, which takes longer than a decode step on a fast
device. A `Launch` is made for one configuration, goes through Triton once, and from then on hands
addresses to the function that Triton compiled.
"""

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from torch import Tensor

from mainboard.kernels.library import interpreted

__all__ = ["Launch", "Prepared", "Wrap", "address", "as_is", "meta"]

Wrap = Callable[[Any], Any]
"""What makes a kernel launchable: itself, or under torch.compile `torch.library.wrap_triton`."""

_T = TypeVar("_T")
_MOST_PREPARED = 8192


def as_is(kernel: Any) -> Any:
    """A kernel, launchable as it is."""
    return kernel


def meta(x: Tensor | None) -> Any:
    """What a check or a launch sees of a tensor, without its address."""
    return None if x is None else (x.dtype, x.shape, x.stride(), x.device)


def address(x: Tensor | None) -> int | None:
    """Where a tensor's elements begin."""
    return None if x is None else x.data_ptr()


class Launch:
    """One kernel with everything but the tensors.

    Args:
        kernel: a function of Triton's.
        grid: how many programs there are.
        numbers: the arguments behind the tensors, in order.
        options: warps, stages and what else the compiler is told.
    """

    def __init__(
        self,
        kernel: Any,
        grid: tuple[int, ...],
        numbers: tuple[Any, ...],
        options: Mapping[str, Any],
    ) -> None:
        self.kernel = kernel
        self.numbers = numbers
        self.options = options
        self._grid = (*grid, 1, 1)[:3]
        self._compiled: Any = None

    def first(self, *tensors: Any, wrap: Wrap = as_is) -> None:
        """Launch through Triton, which compiles the kernel if it must."""
        compiled = wrap(self.kernel)[self._grid](*tensors, *self.numbers, **self.options)
        if wrap is as_is and not interpreted():
            self._compiled = compiled

    def again(self, *addresses: Any) -> None:
        """Launch on tensors that have the properties of the first ones, given by address."""
        self._compiled[self._grid](*addresses, *self.numbers)


class Prepared(Generic[_T]):
    """What was made for each configuration of an operator, by everything that it depends on."""

    def __init__(self) -> None:
        self._made: dict[Any, _T] = {}

    def get(self, key: Any) -> _T | None:
        """What was made for a configuration, if anything."""
        return self._made.get(key)

    def keep(self, key: Any, made: _T) -> None:
        """Remember; configurations that no longer come are dropped with the others, now and then."""
        if len(self._made) >= _MOST_PREPARED:
            self._made.clear()
        self._made[key] = made

    def clear(self) -> None:
        """Forget everything."""
        self._made.clear()

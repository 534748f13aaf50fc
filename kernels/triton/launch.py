"""Launches that cost the host little: a kernel, its grid and its numbers, ready for pointers.

Triton's own launch looks at every argument anew, which takes longer than a decode step on a fast
device. A `Launch` is made for one configuration, goes through Triton once, and from then on hands
addresses to the function that Triton compiled.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from torch import Tensor
from triton import knobs
from triton.runtime.driver import driver

from mainboard.kernels.library import interpreted

__all__ = ["Launch", "Prepared", "Wrap", "as_is", "glance"]

Wrap = Callable[[Any], Any]
"""What makes a kernel launchable: itself, or under torch.compile `torch.library.wrap_triton`."""

_T = TypeVar("_T")
_MOST_PREPARED = 8192


def as_is(kernel: Any) -> Any:
    """A kernel, launchable as it is."""
    return kernel


def glance(tensors: Sequence[Tensor | None], *values: Any) -> tuple[Any, list[int | None]]:
    """What tells one configuration from another, and the tensors' addresses.

    All that a check or a launch sees of a tensor is in it: everything but the address, and of that
    the lowest bits, on which loads depend, where one is set. `values` are in it as they are.
    """
    seen = list(values)
    at: list[int | None] = []
    low = 0
    for x in tensors:
        if x is None:
            seen.append(None)
            at.append(None)
        else:
            begin = x.data_ptr()
            low |= begin
            at.append(begin)
            seen += x.dtype, x.shape, x.stride(), x.get_device()
    if low & 15:
        seen.append(tuple(begin and begin & 15 for begin in at))
    return tuple(seen), at


def _silent(hook: Any) -> bool:
    """Whether nobody listens to launches, such as a profiler does."""
    return hook is None or getattr(hook, "calls", hook) == []


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
        self._handle: tuple[Any, ...] = ()

    def first(self, *tensors: Any, wrap: Wrap = as_is) -> None:
        """Launch through Triton, which compiles the kernel if it must."""
        compiled = wrap(self.kernel)[self._grid](*tensors, *self.numbers, **self.options)
        if wrap is as_is and not interpreted():
            self._compiled = compiled
            self._handle = compiled.function, compiled.packed_metadata, None, None, None

    def again(self, index: int, *addresses: Any) -> None:
        """Launch on tensors that have the properties of the first ones, given by address.

        Args:
            index: the device's.
            addresses: of the tensors.
        """
        listening = knobs.runtime
        if _silent(listening.launch_enter_hook) and _silent(listening.launch_exit_hook):
            active: Any = driver.active  # of a class that its base says too little of
            stream = active.get_current_stream(index)
            self._compiled.run(*self._grid, stream, *self._handle, *addresses, *self.numbers)
        else:
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

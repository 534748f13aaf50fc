"""A padded batch as runs of real tokens, so that attention never computes on padding.

Nothing is moved. The operator takes sequences of any lengths, and a run of padding is one more
sequence, of queries that have no keys: it gets zeros and costs nothing. Keys are read where they
lie, also in a cache laid out heads first. Only keys with holes between them are gathered.
"""

import functools
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from mainboard.errors import UnsupportedConfigurationError

__all__ = ["Packing", "Pattern", "Runs"]

PADDING = -1
LAST = -2


@dataclass(frozen=True)
class Pattern:
    """What a mask lets a query see, padding aside.

    Attributes:
        causal: nothing after the query itself.
        left: tokens before the query that it sees; -1 is unbounded.
        right: the same after it.
        segments: `[1 or batch, keys]`, ascending in each row; tokens see only those of their own
            number. None is one segment.
    """

    causal: bool = False
    left: int = -1
    right: int = -1
    segments: Tensor | None = None


@dataclass(frozen=True)
class Runs:
    """The sequences of one call of the operator.

    Attributes:
        cu_queries: `[runs + 1]` int32, where each begins in the queries, row after row.
        rows: `[runs]`, the row of the batch it is in.
        first_keys: `[runs]`, its first key within the row; with `gather`, within the gathered.
        used: `[runs]` int32, how many keys it has.
        most_queries: of one run.
        most_keys: of one run.
        gather: rows and columns of the keys to bring together first, where they have holes.
    """

    cu_queries: Tensor
    rows: Tensor
    first_keys: Tensor
    used: Tensor
    most_queries: int
    most_keys: int
    gather: tuple[Tensor, Tensor] | None = None
    _cu_keys: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def cu_keys(self, row_tokens: int, tokens: int) -> Tensor:
        """Where the keys of each run begin, when rows of the batch are `row_tokens` apart."""
        found = self._cu_keys.get((row_tokens, tokens))
        if found is None:
            begins = self.rows * row_tokens + self.first_keys
            # A run without keys may begin anywhere, but the offsets must ascend.
            begins = torch.cummax(begins, 0).values if begins.numel() else begins
            found = torch.cat([begins, begins.new_tensor([tokens])]).to(torch.int32)
            self._cu_keys[row_tokens, tokens] = found
        return found


class _Block(NamedTuple):
    """Neighbours in a row of the batch that have one number."""

    row: int
    begin: int
    end: int
    number: int


def _blocks(numbers: Tensor) -> list[_Block]:
    """All blocks of `[rows, columns]`, row after row."""
    width = numbers.shape[1]
    differs = torch.ones_like(numbers, dtype=torch.bool)
    differs[:, 1:] = numbers[:, 1:] != numbers[:, :-1]
    flat = differs.flatten().nonzero().squeeze(1)
    values, starts = numbers.flatten()[flat].tolist(), flat.tolist()
    ends = [*starts[1:], numbers.numel()]
    return [
        _Block(start // width, start % width, end - start // width * width, number)
        for start, end, number in zip(starts, ends, values, strict=True)
    ]


def _spans(numbers: Tensor) -> tuple[dict[tuple[int, int], tuple[int, int]], bool]:
    """First key and end of each (row, segment), and whether padding stands within any."""
    spans: dict[tuple[int, int], tuple[int, int]] = {}
    holes, previous = False, None
    for block in _blocks(numbers):
        if block.number == PADDING:
            continue
        segment = block.row, block.number
        if segment not in spans:
            spans[segment] = block.begin, block.end
        elif segment == previous:
            spans[segment] = spans[segment][0], block.end
            holes = True
        else:
            raise UnsupportedConfigurationError("a packed sequence is in several pieces")
        previous = segment
    return spans, holes


def _refuse_values(*_: object) -> NoReturn:
    raise UnsupportedConfigurationError(
        "this model computes with its attention mask, and mainboard's holds no values; "
        'use attn_implementation="sdpa" or "eager" for it'
    )


class Packing:
    """What a Transformers model carries as its attention mask: made once, read by every layer.

    It has the shape of the 4-D mask that it stands for, and none of its values.
    """

    ndim = 4

    def __init__(
        self,
        batch: int,
        queries: int,
        keys: int,
        first_query: int,
        pattern: Pattern,
        valid: Tensor | None = None,
    ) -> None:
        """Hold a batch; `first_query` is the column of the first query among the keys.

        Args:
            batch: rows.
            queries: query tokens of a row, padding included.
            keys: key tokens of a row, padding included.
            first_query: where the queries stand among the keys.
            pattern: what a query sees.
            valid: `[batch, keys]`, which keys are real; None is all.
        """
        if pattern.causal and not 0 <= first_query <= keys - queries:
            raise UnsupportedConfigurationError(
                f"{queries} queries from column {first_query} are not all among the {keys} keys, "
                "which a causal mask needs"
            )
        self.shape = torch.Size((batch, 1, queries, keys))
        self.first_query = first_query
        self.pattern = pattern
        if valid is not None:
            valid = valid[:, : self._last_key]
        self._valid = None if valid is None or bool(valid.all()) else valid.cpu()
        self._runs: dict[tuple[bool, torch.device], Runs] = {}

    def __repr__(self) -> str:
        return f"Packing(shape={tuple(self.shape)}, {self.pattern})"

    def to(self, *_: object, **__: object) -> "Packing":
        """Itself: offsets go to the device of the queries when they are used."""
        return self

    def contiguous(self) -> "Packing":
        """Itself, as it holds no values."""
        return self

    __getitem__ = __add__ = __radd__ = __mul__ = __rmul__ = __and__ = __invert__ = _refuse_values

    @classmethod
    def __torch_function__(cls, *_: object) -> NoReturn:
        """Refuse every function of torch."""
        _refuse_values()

    @property
    def window(self) -> tuple[int, int]:
        """Left and right, -1 where every key is near enough."""
        reach = self.shape[3] - 1
        left, right = self.pattern.left, self.pattern.right
        return (-1 if left >= reach else left, -1 if right >= reach else right)

    def runs(self, device: torch.device, drop_padding: bool) -> Runs:
        """The sequences to attend to, computed once per forward pass.

        Args:
            device: where the offsets shall be.
            drop_padding: queries and keys are the same tokens, so that a query whose key is
                padding is padding. Otherwise every query counts.

        Raises:
            UnsupportedConfigurationError: a window over keys with holes, or out of line with them.
        """
        # Without a cache, Transformers may leave unsaid that keys stand before the queries.
        among = self.first_query + self.shape[2] == self.shape[3]
        drop_padding = self.pattern.causal or (drop_padding and among)
        found = self._runs.get((drop_padding, device))
        if found is None:
            whole = self._valid is None and self.pattern.segments is None
            found = self._whole(device) if whole else self._parts(device, drop_padding)
            self._runs[drop_padding, device] = found
        return found

    @property
    def _last_key(self) -> int:
        """Columns up to the last that any query may see."""
        queries, keys = self.shape[2:]
        return min(keys, self.first_query + queries) if self.pattern.causal else keys

    def _whole(self, device: torch.device) -> Runs:
        """No padding and one segment: a row is a run."""
        batch, _, queries, _ = self.shape
        keys = self._last_key
        if self.window != (-1, -1) and keys != self.first_query + queries:
            self._refuse_alignment()
        return Runs(
            torch.arange(batch + 1, dtype=torch.int32, device=device) * queries,
            torch.arange(batch, device=device),
            torch.zeros(batch, dtype=torch.int64, device=device),
            torch.full((batch,), keys, dtype=torch.int32, device=device),
            queries,
            keys,
        )

    def _numbers(self) -> Tensor:
        """The segment of every key that may be seen, `PADDING` for padding: [batch, keys]."""
        batch, keys = self.shape[0], self._last_key
        numbers = torch.zeros(batch, keys, dtype=torch.int64)
        if self.pattern.segments is not None:
            numbers += self.pattern.segments[:, :keys].cpu()
        if self._valid is not None:
            numbers[~self._valid] = PADDING
        return numbers

    def _parts(self, device: torch.device, drop_padding: bool) -> Runs:
        """One run for every stretch of queries that see the same keys."""
        numbers = self._numbers()
        spans, holes = _spans(numbers)
        if holes and self.window != (-1, -1):
            self._refuse_holes()
        asking = _blocks(self._asking(numbers, drop_padding))
        extents = [self._extent(block, spans) for block in asking]
        rows, gather = [block.row for block in asking], None
        if holes:
            extents = _among_real(numbers, rows, extents)
            rows = [0] * len(rows)
            row, column = (numbers != PADDING).nonzero(as_tuple=True)
            gather = row.to(device), column.to(device)
        lengths = [block.end - block.begin for block in asking]
        used = [end - begin for begin, end in extents]
        return Runs(
            torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device),
            torch.tensor(rows, device=device),
            torch.tensor([begin for begin, _ in extents], device=device),
            torch.tensor(used, dtype=torch.int32, device=device),
            max(lengths, default=0),
            max(used, default=0),
            gather,
        )

    def _asking(self, numbers: Tensor, drop_padding: bool) -> Tensor:
        """The segment whose keys each query wants, `PADDING` for none: [batch, queries]."""
        batch, _, queries, _ = self.shape
        if not drop_padding:
            if self.pattern.segments is not None:
                raise UnsupportedConfigurationError("segments need queries that are keys as well")
            return torch.zeros(batch, queries, dtype=torch.int64)
        asking = numbers[:, self.first_query : self.first_query + queries].clone()
        if self.pattern.causal:
            # Generation reads the last position of a row even where it is padding.
            asking[asking[:, -1:].eq(PADDING).any(1), -1] = LAST
        return asking

    def _extent(
        self, asking: _Block, spans: dict[tuple[int, int], tuple[int, int]]
    ) -> tuple[int, int]:
        """First key and end of the keys that a block of queries sees between them."""
        stop = self.first_query + asking.end
        left, _ = self.window
        if asking.number == LAST:
            begin, end = spans.get((asking.row, self._last_segments[asking.row]), (0, 0))
            begin = max(begin, stop - 1 - left) if left >= 0 else begin
            return begin, max(begin, end)
        begin, end = spans.get((asking.row, asking.number), (0, 0))
        if end and self.pattern.causal:
            return begin, stop
        if end not in (0, stop) and self.window != (-1, -1):
            self._refuse_alignment()
        return begin, end

    @functools.cached_property
    def _last_segments(self) -> list[int]:
        """The segment of each row's last visible column, were it not padding."""
        if self.pattern.segments is None:
            return [0] * self.shape[0]
        last = self.pattern.segments[:, self._last_key - 1]
        numbers: list[int] = last.expand(self.shape[0]).tolist()
        return numbers

    def _refuse_holes(self) -> NoReturn:
        raise UnsupportedConfigurationError(
            "a sliding window needs the real tokens of each row side by side, and this batch has "
            "padding between them; pad on the left to generate"
        )

    def _refuse_alignment(self) -> NoReturn:
        raise UnsupportedConfigurationError(
            "a sliding window needs queries that stand at the end of their keys, and these do not"
        )


def _among_real(
    numbers: Tensor, rows: list[int], extents: list[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Extents counted among the real keys of the batch alone."""
    before = [0, *(numbers != PADDING).flatten().cumsum(0).tolist()]
    starts = [row * numbers.shape[1] for row in rows]
    return [
        (before[start + begin], before[start + end])
        for start, (begin, end) in zip(starts, extents, strict=True)
    ]

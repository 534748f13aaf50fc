"""Attention as Transformers calls it, against its own boolean masks in float64."""

import functools
import random

import pytest
import torch
from torch import Tensor, nn

masking_utils = pytest.importorskip(
    "transformers.masking_utils", reason="transformers is not installed"
)

from mainboard.errors import UnsupportedConfigurationError
from mainboard.integrations.packing import Packing, Pattern
from mainboard.integrations.transformers import attention_forward, attention_mask

CAUSAL = masking_utils.causal_mask_function
FULL = masking_utils.bidirectional_mask_function


class SelfAttention(nn.Module):
    """A layer whose queries and keys are one set of tokens."""

    def forward(self, hidden_states: Tensor, attention_mask: Tensor) -> None:
        """Take only what a self-attention layer takes."""


class CrossAttention(nn.Module):
    """A layer that may attend to other tokens than its own."""

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor) -> None:
        """Take the other tokens."""


def expected(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Softmax under a boolean mask, in float64; a query that sees nothing gives zeros."""
    q, k, v = query.double(), key.double(), value.double()
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~mask, float("-inf"))
    return (scores.softmax(-1).nan_to_num() @ v).transpose(1, 2)


def heads_first(batch: int, heads: int, tokens: int, dim: int, draw: random.Random) -> Tensor:
    """`[batch, heads, tokens, dim]` in one of the layouts that models leave."""
    layout = draw.choice(("projection", "cache", "static cache", "odd"))
    if layout == "projection":
        return torch.randn(batch, tokens, heads, dim).transpose(1, 2)
    if layout == "static cache":
        return torch.randn(batch, heads, tokens + 5, dim)[:, :, :tokens]
    if layout == "odd":
        return torch.randn(batch, heads, dim, tokens).transpose(2, 3)
    return torch.randn(batch, heads, tokens, dim)


def padding(kind: str, batch: int, keys: int, draw: random.Random) -> Tensor | None:
    """A 2-D padding mask."""
    if kind == "none":
        return None
    mask = torch.ones(batch, keys, dtype=torch.bool)
    for row in mask:
        count = draw.randint(0, keys)
        if kind == "left":
            row[:count] = False
        elif kind == "right":
            row[keys - count :] = False
        elif kind == "holes":
            row[torch.rand(keys) < 0.4] = False
    return mask


def run(
    mask_function: object,
    mask: Tensor | None,
    *,
    sizes: tuple[int, int, int],
    draw: random.Random,
    offset: int | None = None,
    layer: type[nn.Module] = SelfAttention,
) -> tuple[Tensor, Tensor, Tensor]:
    """Our output, what it should be, and the boolean mask."""
    batch, queries, keys = sizes
    heads, groups, dim = draw.choice((1, 2)), draw.choice((1, 3)), draw.choice((8, 32))
    query = heads_first(batch, heads * groups, queries, dim, draw)
    key, value = (heads_first(batch, heads, keys, dim, draw) for _ in range(2))
    offset = keys - queries if offset is None else offset
    arguments = {
        "batch_size": batch,
        "q_length": queries,
        "kv_length": keys,
        "q_offset": offset,
        "mask_function": mask_function,
        "attention_mask": mask,
    }
    packing = attention_mask(**arguments)
    with torch.inference_mode():
        got, weights = attention_forward(layer(), query, key, value, packing)
    assert weights is None
    seen = masking_utils.sdpa_mask(**arguments, allow_is_causal_skip=False)
    return got, expected(query, key, value, seen.expand(batch, 1, queries, keys)), seen


def agree(got: Tensor, want: Tensor, real: Tensor) -> None:
    """Rows of real tokens agree."""
    torch.testing.assert_close(got[real].double(), want[real], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["none", "left", "right", "holes"])
@pytest.mark.parametrize("seed", range(25))
def test_causal_masks_match_wherever_padding_stands(kind: str, seed: int) -> None:
    """Prefill, chunked prefill and decode, in every layout of the cache."""
    torch.manual_seed(seed)
    draw = random.Random(seed)
    batch, keys = draw.randint(1, 4), draw.randint(1, 40)
    queries = draw.choice((1, keys, draw.randint(1, keys)))
    mask = padding(kind, batch, keys, draw)
    got, want, _ = run(CAUSAL, mask, sizes=(batch, queries, keys), draw=draw)
    real = torch.ones(batch, queries, dtype=torch.bool)
    if mask is not None:
        real = mask[:, keys - queries :].clone()
        assert not got[:, :-1][~real[:, :-1]].any(), "padding gives zeros"
        real[:, -1] = True
    agree(got, want, real)


@pytest.mark.parametrize("kind", ["none", "left", "right", "holes"])
@pytest.mark.parametrize("seed", range(15))
def test_bidirectional_masks_match_and_drop_their_padding(kind: str, seed: int) -> None:
    """An encoder computes on real tokens alone, wherever the padding stands."""
    torch.manual_seed(seed)
    draw = random.Random(seed)
    batch, keys = draw.randint(1, 4), draw.randint(1, 40)
    mask = padding(kind, batch, keys, draw)
    got, want, _ = run(FULL, mask, sizes=(batch, keys, keys), draw=draw)
    real = torch.ones(batch, keys, dtype=torch.bool) if mask is None else mask
    agree(got, want, real)
    assert not got[~real].any(), "padding gives zeros"


@pytest.mark.parametrize("kind", ["none", "left", "right", "holes"])
@pytest.mark.parametrize("seed", range(10))
def test_a_layer_that_may_attend_elsewhere_answers_every_query(kind: str, seed: int) -> None:
    """Padding of an encoder's tokens says nothing of a decoder's, equal lengths or not."""
    torch.manual_seed(seed)
    draw = random.Random(seed)
    batch, keys = draw.randint(1, 4), draw.randint(1, 30)
    queries = draw.choice((keys, draw.randint(1, 50)))
    mask = padding(kind, batch, keys, draw)
    sizes = (batch, queries, keys)
    got, want, _ = run(FULL, mask, sizes=sizes, draw=draw, offset=0, layer=CrossAttention)
    agree(got, want, torch.ones(batch, queries, dtype=torch.bool))


@pytest.mark.parametrize("offset", [0, 4])
def test_keys_before_the_queries_are_not_taken_for_them(offset: int) -> None:
    """A prefix of keys, with and without a cache to say where it ends."""
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[:, 1] = False
    mask[1, 7:] = False
    draw = random.Random(0)
    got, want, _ = run(FULL, mask, sizes=(2, 5, 9), draw=draw, offset=offset)
    agree(got, want, mask[:, 4:])
    assert got[1, 3:].any() == (offset == 0), "padding is known where the offset is"


@pytest.mark.parametrize("kind", ["none", "left", "right"])
@pytest.mark.parametrize("seed", range(15))
def test_sliding_windows_match_in_prefill_and_decode(kind: str, seed: int) -> None:
    """A window counts tokens of the row, also from a right-padded row's last position."""
    torch.manual_seed(seed)
    draw = random.Random(seed)
    batch, keys = draw.randint(1, 4), draw.randint(1, 40)
    queries = draw.choice((1, keys, draw.randint(1, keys)))
    window = masking_utils.sliding_window_causal_mask_function(draw.randint(1, 45))
    mask = padding(kind, batch, keys, draw)
    got, want, _ = run(window, mask, sizes=(batch, queries, keys), draw=draw)
    real = torch.ones(batch, queries, dtype=torch.bool)
    if mask is not None:
        real = mask[:, keys - queries :].clone()
        real[:, -1] = True
    agree(got, want, real)


@pytest.mark.parametrize("kind", ["none", "left", "right"])
@pytest.mark.parametrize("seed", range(10))
def test_windows_to_both_sides_match(kind: str, seed: int) -> None:
    """A local encoder layer sees as far to the right as to the left."""
    torch.manual_seed(seed)
    draw = random.Random(seed)
    batch, keys = draw.randint(1, 4), draw.randint(1, 40)
    window = masking_utils.sliding_window_bidirectional_mask_function(draw.randint(1, 45))
    mask = padding(kind, batch, keys, draw)
    got, want, _ = run(window, mask, sizes=(batch, keys, keys), draw=draw)
    agree(got, want, torch.ones(batch, keys, dtype=torch.bool) if mask is None else mask)


@pytest.mark.parametrize("kind", ["none", "left", "right"])
@pytest.mark.parametrize("seed", range(15))
def test_chunks_match_in_prefill_and_decode(kind: str, seed: int) -> None:
    """Chunks are counted from the first real token of a row."""
    torch.manual_seed(seed)
    draw = random.Random(seed)
    batch, keys = draw.randint(1, 4), draw.randint(1, 40)
    queries = draw.choice((1, keys, draw.randint(1, keys)))
    mask = padding(kind, batch, keys, draw)
    before = torch.zeros(batch, dtype=torch.int64)
    if mask is not None:
        before = (mask.cumsum(-1) == 0).sum(-1)
    chunks = masking_utils.chunked_causal_mask_function(draw.randint(1, 20), before)
    got, want, _ = run(chunks, mask, sizes=(batch, queries, keys), draw=draw)
    real = torch.ones(batch, queries, dtype=torch.bool)
    if mask is not None:
        real = mask[:, keys - queries :].clone()
        real[:, -1] = True
    agree(got, want, real)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("seed", range(10))
def test_packed_sequences_stay_apart(window: int | None, seed: int) -> None:
    """Sequences packed into one row see only themselves, and windows count within them."""
    torch.manual_seed(seed)
    draw = random.Random(seed)
    lengths = [draw.randint(1, 9) for _ in range(draw.randint(1, 5))]
    number = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None]
    inner = CAUSAL
    if window is not None:
        inner = masking_utils.sliding_window_causal_mask_function(window)
    packed = masking_utils.and_masks(masking_utils.packed_sequence_mask_function(number), inner)
    total = sum(lengths)
    got, want, _ = run(packed, None, sizes=(1, total, total), draw=draw)
    agree(got, want, torch.ones(1, total, dtype=torch.bool))


def test_a_static_cache_is_read_up_to_the_last_query() -> None:
    """Slots that are not written yet lie after every query, and may hold anything."""
    query = torch.randn(2, 2, 3, 8)
    key, value = torch.randn(2, 2, 2, 20, 8).unbind(0)
    packing = attention_mask(2, 3, 20, q_offset=torch.tensor(4), mask_function=CAUSAL)
    with torch.inference_mode():
        clean, _ = attention_forward(SelfAttention(), query, key, value, packing)
        key[:, :, 7:], value[:, :, 7:] = float("nan"), float("nan")
        dirty, _ = attention_forward(SelfAttention(), query, key, value, packing)
    assert torch.equal(clean, dirty)


def test_a_mask_shorter_than_the_cache_hides_the_rest() -> None:
    """What a 2-D mask does not reach is padding, as in Transformers."""
    packing = attention_mask(
        1, 1, 8, q_offset=3, mask_function=CAUSAL, attention_mask=torch.tensor([[0, 1, 1, 1]])
    )
    runs = packing.runs(torch.device("cpu"), drop_padding=True)
    assert (runs.first_keys.tolist(), runs.used.tolist()) == ([1], [3])


def test_runs_are_computed_once_for_all_layers() -> None:
    """Every layer of a forward pass reads the same runs and offsets."""
    packing = Packing(2, 4, 4, 0, Pattern(), torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]]).bool())
    first = packing.runs(torch.device("cpu"), drop_padding=True)
    assert packing.runs(torch.device("cpu"), drop_padding=True) is first
    assert first.cu_keys(4, 8) is first.cu_keys(4, 8)
    assert first.cu_queries.tolist() == [0, 3, 4, 5, 8]
    assert first.used.tolist() == [3, 0, 1, 0]


def test_keys_are_read_where_they_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a projection's layout nor a cache's is copied for the operator."""
    from mainboard.integrations import transformers as integration

    seen: list[tuple[Tensor, Tensor]] = []

    def record(q: Tensor, k: Tensor, v: Tensor, **_: object) -> None:
        seen.append((k, v))

    monkeypatch.setattr(integration, "attention", record)
    query = torch.randn(2, 4, 1, 8)
    for key in (torch.randn(2, 4, 9, 8), torch.randn(2, 9, 4, 8).transpose(1, 2)):
        packing = attention_mask(2, 1, 9, q_offset=8, mask_function=CAUSAL)
        attention_forward(SelfAttention(), query, key, key, packing)
        assert seen[-1][0].data_ptr() == key.data_ptr()


def _custom(*_: object) -> bool:
    return True


@pytest.mark.parametrize(
    "mask_function",
    [
        pytest.param(_custom, id="custom"),
        pytest.param(masking_utils.or_masks(CAUSAL, FULL), id="union"),
        pytest.param(masking_utils.and_masks(CAUSAL, _custom), id="custom inside"),
        pytest.param(functools.partial(CAUSAL), id="no function"),
    ],
)
def test_an_unknown_mask_is_refused(mask_function: object) -> None:
    """A mask that was not read is never guessed at."""
    with pytest.raises(UnsupportedConfigurationError, match="does not know the mask"):
        attention_mask(1, 4, 4, mask_function=mask_function)


def test_a_window_over_holes_is_refused() -> None:
    """Distances between tokens with padding between them are not those of the packed ones."""
    window = masking_utils.sliding_window_causal_mask_function(3)
    holes = torch.tensor([[1, 1, 0, 0, 1, 1]])
    packing = attention_mask(1, 6, 6, mask_function=window, attention_mask=holes)
    x = torch.randn(1, 1, 6, 8)
    with pytest.raises(UnsupportedConfigurationError, match="pad on the left"):
        attention_forward(SelfAttention(), x, x, x, packing)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dropout": 0.1}, "dropout is 0.1"),
        ({"output_attentions": True}, "never formed"),
        ({"position_bias": torch.zeros(1)}, "a bias is added"),
        ({"cache": object()}, "continuous batching"),
        ({"attention_mask": torch.zeros(1, 1, 4, 4)}, "4-D tensor"),
        ({"attention_mask": Packing(1, 4, 5, 0, Pattern())}, "this layer has"),
        ({"sliding_window": 2, "is_causal": False}, "not causal"),
        ({"cu_seq_lens_q": torch.tensor([0, 2, 4])}, "cu_seq_lens_q names other sequences"),
    ],
)
def test_what_cannot_be_expressed_is_refused(options: dict[str, object], message: str) -> None:
    """Each is refused with its reason and what to use instead."""
    x = torch.randn(1, 1, 4, 8)
    arguments = {"attention_mask": None, **options}
    with pytest.raises(UnsupportedConfigurationError, match=message):
        attention_forward(SelfAttention(), x, x, x, **arguments)


def test_causal_queries_without_a_mask_must_be_all_or_one() -> None:
    """Nothing says where four queries stand among nine keys."""
    x, y = torch.randn(1, 1, 4, 8), torch.randn(1, 1, 9, 8)
    with pytest.raises(UnsupportedConfigurationError, match="4 causal queries stand among 9"):
        attention_forward(SelfAttention(), x, y, y, None, is_causal=True)


def test_the_module_says_whether_it_is_causal_without_a_mask() -> None:
    """As in Transformers' own SDPA: the argument first, then the module, then causal."""
    x = torch.randn(1, 2, 5, 8)
    module = SelfAttention()
    triangle = torch.ones(5, 5, dtype=torch.bool).tril()
    for said, argument, mask in (
        (None, None, triangle),
        (False, None, torch.ones_like(triangle)),
        (False, True, triangle),
    ):
        if said is not None:
            module.is_causal = said
        with torch.inference_mode():
            got, _ = attention_forward(module, x, x, x, None, is_causal=argument)
        agree(got, expected(x, x, x, mask[None, None]), torch.ones(1, 5, dtype=torch.bool))


def test_arithmetic_on_the_mask_is_refused() -> None:
    """A model that computes with its mask gets told so, not a wrong result."""
    packing = Packing(1, 4, 4, 0, Pattern())
    for action in (
        lambda: packing[:, :, :, :2],
        lambda: packing + torch.zeros(1),
        lambda: torch.zeros(1) + packing,
        lambda: torch.logical_not(packing),
    ):
        with pytest.raises(UnsupportedConfigurationError, match="computes with its attention mask"):
            action()

"""Time Mainboard's attention, PyTorch's SDPA and Transformers' eager attention inside one model.

The three take turns on the same batches, so that whatever else the machine does falls on all alike.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, eager_mask, sdpa_mask
from transformers.models.bert.modeling_bert import eager_attention_forward

from mainboard.integrations.transformers import attention_forward, attention_mask
from mainboard.platforms import current_platform

MOST_SECONDS = 40.0  # after which no further repeat begins
MOST_BATCHES = 8


@dataclass
class Contender:
    """One implementation of attention, and the seconds that each repeat took."""

    name: str
    functions: tuple[Callable[..., Any], Callable[..., Any]]
    inside: float = 0.0
    attention: list[float] = field(default_factory=list)
    model: list[float] = field(default_factory=list)

    def register(self) -> str:
        """Let models use it, timed, under the name returned; its time includes the mask's."""
        attend, mask = map(self._timed, self.functions)
        name = f"{self.name}, timed"
        AttentionInterface.register(name, attend)
        AttentionMaskInterface.register(name, mask)
        return name

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            current_platform.synchronize()
            begin = time.perf_counter()
            result = function(*args, **kwargs)
            current_platform.synchronize()
            self.inside += time.perf_counter() - begin
            return result

        return timed

    def run(self, work: Callable[[], Tensor], warm: bool) -> Tensor:
        """Do the work, and keep its times if the machine is warm."""
        self.inside = 0.0
        begin = time.perf_counter()
        result = work()
        if warm:
            self.model.append(time.perf_counter() - begin)
            self.attention.append(self.inside)
        return result

    def medians(self) -> dict[str, float]:
        """Milliseconds in attention and in the whole model."""
        return {
            "attention_ms": 1e3 * statistics.median(self.attention),
            "model_ms": 1e3 * statistics.median(self.model),
        }


@dataclass(frozen=True)
class Comparison:
    """Median milliseconds by name, over how many repeats, and how like eager's our vectors are."""

    times: dict[str, dict[str, float]]
    repeats: int
    least_cosine: float


def affordable(batches: Sequence[Any], seconds: float, repeats: int) -> list[Any]:
    """As many batches as there is time for, from all lengths alike, at `seconds` for each."""
    count = int(MOST_SECONDS / (3 * (repeats + 1) * seconds))
    step = max(1, round(len(batches) / max(1, min(count, MOST_BATCHES))))
    return list(batches[step // 2 :: step])


def compare(
    model: Any, embed: Callable[[Any], Tensor], batches: Sequence[Any], repeats: int
) -> Comparison:
    """Embed the batches by each implementation in turn, `repeats` times after a warm-up."""
    contenders = (
        Contender("mainboard", (attention_forward, attention_mask)),
        Contender("sdpa", (sdpa_attention_forward, sdpa_mask)),
        Contender("eager", (eager_attention_forward, eager_mask)),
    )
    turns = [(contender, contender.register()) for contender in contenders]
    vectors: dict[str, Tensor] = {}
    started = time.perf_counter()
    for repeat in tqdm(range(repeats + 1), desc="Comparing", unit="repeat", disable=None):
        if repeat > 1 and time.perf_counter() - started > MOST_SECONDS:
            break
        turns = turns[1:] + turns[:1]  # none always follows the same other
        for contender, name in turns:
            model.set_attn_implementation(name)
            vectors[contender.name] = contender.run(
                lambda: torch.cat([embed(tokens) for tokens in batches]), warm=repeat > 0
            )
    return Comparison(
        {contender.name: contender.medians() for contender in contenders},
        len(contenders[0].model),
        float((vectors["mainboard"] * vectors["eager"]).sum(1).min()),
    )

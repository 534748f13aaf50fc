"""How a request wants its tokens chosen, or its embeddings made."""

from enum import Enum, IntEnum
from functools import cached_property
from typing import Any

from mainboard.plugins.vllm_names.records import Record, configuration, field

__all__ = [
    "BeamSearchParams",
    "PoolingParams",
    "RepetitionDetectionParams",
    "RequestOutputKind",
    "SamplingParams",
    "SamplingType",
    "StructuredOutputsParams",
]

# Below this temperature the most probable token is always taken.
_GREEDY = 1e-5


class SamplingType(IntEnum):
    """Whether tokens are drawn, and from a generator of the request's own."""

    GREEDY = 0
    RANDOM = 1
    RANDOM_SEED = 2


class RequestOutputKind(Enum):
    """What a request gets while it runs: all so far, what is new, or only the end."""

    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


@configuration
class StructuredOutputsParams(Record):
    """The form that the output must have; exactly one constraint may be given."""

    json: str | dict[str, Any] | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    whitespace_pattern: str | None = None
    structural_tag: str | None = None
    _backend: str | None = field(default=None, init=False)
    _backend_was_auto: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        given = [name for name in self._constraints() if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"structured output takes exactly one constraint of"
                f" {', '.join(self._constraints())}; given {', '.join(given) or 'none'}"
            )

    @staticmethod
    def _constraints() -> tuple[str, ...]:
        return ("json", "regex", "choice", "grammar", "json_object", "structural_tag")

    def all_constraints_none(self) -> bool:
        """Whether every constraint has been taken away since."""
        return all(getattr(self, name) is None for name in self._constraints())


@configuration
class RepetitionDetectionParams(Record):
    """When output that repeats itself ends the request."""

    max_pattern_size: int = 0
    min_pattern_size: int = 0
    min_count: int = 0


@configuration
class SamplingParams(Record):
    """How the tokens of a request are chosen, and when it ends."""

    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    watermarking: bool | None = None
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    prompt_logprob_token_ids: list[Any] | None = None
    prompt_logprob_start: int | None = None
    logprob_token_ids: list[int] | None = None
    flat_logprobs: bool = False
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    stream_interval: int | None = None
    skip_clone: bool = False
    output_text_buffer_length: int = 0
    _eos_token_id: int | None = None
    _all_stop_token_ids: set[int] = field(default_factory=set)
    _watermarking_skipped: bool = False
    structured_outputs: StructuredOutputsParams | None = None
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[int] | None = None
    extra_args: dict[str, Any] | None = None
    bad_words: list[str] | None = None
    _bad_words_token_ids: list[list[int]] | None = None
    skip_reading_prefix_cache: bool | None = None
    thinking_token_budget: int | None = None
    repetition_detection: RepetitionDetectionParams | None = None
    routed_experts_prompt_start: int = 0
    trace_decode_token_ids: list[int] | None = None

    def __post_init__(self) -> None:
        self._check()
        self.seed = None if self.seed == -1 else self.seed
        self.stop = [self.stop] if isinstance(self.stop, str) else list(self.stop or ())
        self.stop_token_ids = list(dict.fromkeys(self.stop_token_ids or ()))
        self.bad_words = list(dict.fromkeys(self.bad_words or ()))
        self._all_stop_token_ids |= set(self.stop_token_ids)
        if self.stop and not self.include_stop_str_in_output:
            # So much text is held back: a stop string may begin in it.
            self.output_text_buffer_length = max(map(len, self.stop)) - 1
        if self.temperature < _GREEDY:
            self.top_p, self.top_k, self.min_p = 1.0, 0, 0.0

    def _check(self) -> None:
        allowed = {
            "n": (self.n >= 1, "at least 1"),
            "presence_penalty": (-2 <= self.presence_penalty <= 2, "from -2 to 2"),
            "frequency_penalty": (-2 <= self.frequency_penalty <= 2, "from -2 to 2"),
            "repetition_penalty": (0 < self.repetition_penalty < float("inf"), "above 0"),
            "temperature": (0 <= self.temperature <= 2, "from 0 to 2"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "top_k": (self.top_k >= -1, "0 or -1 for all tokens, or at least 1"),
            "min_p": (0 <= self.min_p <= 1, "from 0 to 1"),
            "max_tokens": (self.max_tokens is None or self.max_tokens >= 1, "at least 1"),
            "min_tokens": (self.min_tokens >= 0, "at least 0"),
        }
        for name, (holds, rule) in allowed.items():
            if not holds:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be {rule}")

    @cached_property
    def sampling_type(self) -> SamplingType:
        """Whether tokens are drawn, and from a generator of the request's own."""
        if self.temperature < _GREEDY:
            return SamplingType.GREEDY
        return SamplingType.RANDOM if self.seed is None else SamplingType.RANDOM_SEED

    @property
    def all_stop_token_ids(self) -> set[int]:
        """The tokens that end the request."""
        return self._all_stop_token_ids

    @property
    def eos_token_id(self) -> int | None:
        """The model's own last token, once an engine has set it."""
        return self._eos_token_id

    def clone(self) -> "SamplingParams":
        """A copy that can be changed without changing this one."""
        from copy import deepcopy

        return deepcopy(self)

    @classmethod
    def from_optional(cls, max_tokens: int | None = 16, **given: Any) -> "SamplingParams":
        """Parameters of which None means the default; of `max_tokens` it means no limit."""
        named = {name: value for name, value in given.items() if value is not None}
        return cls(max_tokens=max_tokens, **named)


@configuration
class BeamSearchParams(Record):
    """How a search over several continuations goes."""

    beam_width: int
    max_tokens: int
    ignore_eos: bool = False
    temperature: float = 0.0
    length_penalty: float = 1.0
    include_stop_str_in_output: bool = False
    structured_outputs: StructuredOutputsParams | None = None
    skip_special_tokens: bool = True
    watermarking: bool | None = None
    allowed_token_ids: list[int] | None = None


@configuration
class PoolingParams(Record):
    """How a request wants its embedding, score or class."""

    use_activation: bool | None = None
    dimensions: int | None = None
    step_tag_id: int | None = None
    returned_token_ids: list[int] | None = None
    task: str | None = None
    requires_token_ids: bool = False
    skip_reading_prefix_cache: bool | None = None
    late_interaction_params: Any | None = None
    extra_kwargs: dict[str, Any] | None = None
    output_kind: RequestOutputKind = RequestOutputKind.FINAL_ONLY
    late_chunking_params: Any | None = None

    def clone(self) -> "PoolingParams":
        """A copy that can be changed without changing this one."""
        from copy import deepcopy

        return deepcopy(self)

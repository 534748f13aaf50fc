"""What people give to an engine as a prompt, and what it makes of it: dictionaries by kind."""

from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict

if TYPE_CHECKING:
    import torch

__all__ = [
    "DecoderOnlyEngineInput",
    "EmbedsInput",
    "EmbedsPrompt",
    "EncoderDecoderInput",
    "EngineInput",
    "ExplicitEncoderDecoderPrompt",
    "MultiModalInput",
    "PromptType",
    "SingletonInput",
    "SingletonPrompt",
    "TextPrompt",
    "TokensInput",
    "TokensPrompt",
    "embeds_input",
    "tokens_input",
]


class _PromptOptions(TypedDict, total=False):
    multi_modal_data: dict[str, Any] | None
    multi_modal_uuids: dict[str, Any] | None
    mm_processor_kwargs: dict[str, Any] | None
    cache_salt: str


class TextPrompt(_PromptOptions):
    """A prompt as text."""

    prompt: str


class TokensPrompt(_PromptOptions):
    """A prompt as ids of tokens."""

    prompt_token_ids: list[int]


class EmbedsPrompt(_PromptOptions):
    """A prompt as embeddings."""

    prompt_embeds: "torch.Tensor"


class ExplicitEncoderDecoderPrompt(TypedDict):
    """A prompt for the encoder and one for the decoder."""

    encoder_prompt: "str | TextPrompt | list[int] | TokensPrompt"
    decoder_prompt: "str | TextPrompt | list[int] | TokensPrompt | None"


SingletonPrompt: TypeAlias = str | TextPrompt | list[int] | TokensPrompt | EmbedsPrompt
PromptType: TypeAlias = SingletonPrompt | ExplicitEncoderDecoderPrompt


class _InputOptions(TypedDict, total=False):
    arrival_time: float
    cache_salt: str


class TokensInput(_InputOptions):
    """A prompt of tokens, as an engine passes it on."""

    type: Literal["token"]
    prompt_token_ids: list[int]


class EmbedsInput(_InputOptions):
    """A prompt of embeddings, as an engine passes it on."""

    type: Literal["embeds"]
    prompt_embeds: "torch.Tensor"


class MultiModalInput(_InputOptions):
    """A prompt of tokens with images and the like, as an engine passes it on."""

    type: Literal["multimodal"]
    prompt_token_ids: list[int]
    mm_kwargs: Any
    mm_hashes: dict[str, list[str]]
    mm_placeholders: dict[str, Any]


DecoderOnlyEngineInput: TypeAlias = TokensInput | EmbedsInput | MultiModalInput
SingletonInput: TypeAlias = DecoderOnlyEngineInput


class EncoderDecoderInput(TypedDict):
    """What the encoder and the decoder get, as an engine passes it on."""

    type: Literal["enc_dec"]
    encoder_prompt: SingletonInput
    decoder_prompt: SingletonInput


EngineInput: TypeAlias = DecoderOnlyEngineInput | EncoderDecoderInput


def tokens_input(prompt_token_ids: list[int], cache_salt: str | None = None) -> TokensInput:
    """A `TokensInput` of these tokens."""
    made = TokensInput(type="token", prompt_token_ids=prompt_token_ids)
    if cache_salt is not None:
        made["cache_salt"] = cache_salt
    return made


def embeds_input(prompt_embeds: "torch.Tensor", cache_salt: str | None = None) -> EmbedsInput:
    """An `EmbedsInput` of these embeddings."""
    made = EmbedsInput(type="embeds", prompt_embeds=prompt_embeds)
    if cache_salt is not None:
        made["cache_salt"] = cache_salt
    return made

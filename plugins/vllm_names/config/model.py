"""Configuration of the model.

What only its checkpoint says is read, with Transformers, when it is first asked for: building a
configuration needs neither files nor network.
"""

from typing import Any

from mainboard.plugins.vllm_names import envs
from mainboard.plugins.vllm_names.config.features import MultiModalConfig
from mainboard.plugins.vllm_names.config.work import ParallelConfig
from mainboard.plugins.vllm_names.records import Config, InitVar, configuration, field
from mainboard.plugins.vllm_names.utils.torch_utils import get_kv_cache_torch_dtype

__all__ = ["ModelConfig"]

# Kinds of layers that keep keys and values, as checkpoints call them.
_ATTENTION = {"attention", "full_attention", "sliding_attention", "chunked_attention"}


def _unset() -> Any:
    """The value of a field that the checkpoint fills in; a class attribute would hide that."""
    return None


@configuration
class ModelConfig(Config):
    """Which model is run, in which precision and up to which length.

    `hf_config`, and `max_model_len` and `dtype` where they were left open, come from the checkpoint.
    """

    model: str = "Qwen/Qwen3-0.6B"
    model_weights: str = ""
    runner: str = "auto"
    convert: str = "auto"
    tokenizer: str | None = None
    tokenizer_mode: str = "auto"
    trust_remote_code: bool = False
    dtype: Any = "auto"
    seed: int = 0
    hf_config: Any = field(init=False, repr=False, compare=False)
    hf_text_config: Any = field(init=False, repr=False, compare=False)
    is_submodel_config: bool = field(default=False, init=False)
    word_embeddings_untied_by_checkpoint: bool = field(default=False, init=False)
    hf_config_path: str | None = None
    allowed_local_media_path: str = ""
    allowed_media_domains: list[str] | None = None
    revision: str | None = None
    code_revision: str | None = None
    tokenizer_revision: str | None = None
    max_model_len: int = field(default_factory=_unset)
    spec_target_max_model_len: int | None = None
    quantization: Any = None
    quantization_config: Any = None
    allow_deprecated_quantization: bool = False
    enforce_eager: bool = False
    return_sampling_mask: bool = False
    max_logprobs: int = 20
    logprobs_mode: str = "raw_logprobs"
    use_fp64_gumbel: bool = False
    enable_trace_replay: bool = False
    disable_sliding_window: bool = False
    disable_cascade_attn: bool = True
    skip_tokenizer_init: bool = False
    enable_prompt_embeds: bool = False
    served_model_name: str | list[str] | None = None
    config_format: str = "auto"
    hf_token: bool | str | None = None
    hf_overrides: Any = field(default_factory=dict)
    model_class_overrides: dict[str, str] = field(default_factory=dict)
    generation_config: str = "auto"
    override_generation_config: dict[str, Any] = field(default_factory=dict)
    enable_sleep_mode: bool = False
    sleep_preserve_parameter_names: list[str] = field(default_factory=list)
    sleep_mode_backend: str = "cumem"
    sleep_mode_offload_cudagraph: bool = False
    enable_nccl_comm_suspend: bool = False
    enable_cumem_allocator: bool = False
    model_impl: str = "auto"
    logits_processors: Any = None
    io_processor_plugin: str | None = None
    renderer_num_workers: int = 1
    pooler_config: Any = None
    multimodal_config: Any = None
    language_model_only: InitVar[bool] = False
    limit_mm_per_prompt: InitVar[Any] = None
    enable_mm_embeds: InitVar[bool | None] = None
    media_io_kwargs: InitVar[Any] = None
    mm_processor_kwargs: InitVar[dict[str, Any] | None] = None
    mm_processor_cache_gb: InitVar[float | None] = None
    mm_processor_cache_type: InitVar[str | None] = None
    mm_hasher_algorithm: InitVar[Any] = None
    mm_shm_cache_max_object_size_mb: InitVar[int | None] = None
    mm_encoder_only: InitVar[bool | None] = None
    mm_encoder_tp_mode: InitVar[str | None] = None
    mm_encoder_attn_backend: InitVar[Any] = None
    mm_encoder_attn_dtype: InitVar[str | None] = None
    mm_encoder_fp8_scale_path: InitVar[str | None] = None
    mm_encoder_fp8_scale_save_path: InitVar[str | None] = None
    mm_encoder_fp8_scale_save_margin: InitVar[float | None] = None
    interleave_mm_strings: InitVar[bool | None] = None
    skip_mm_profiling: InitVar[bool | None] = None
    video_pruning_rate: InitVar[float | None] = None
    video_pruning_method: InitVar[str | None] = None
    mm_tensor_ipc: InitVar[Any] = None
    mm_ipc_gpu_memory_gb: InitVar[float | None] = None
    mm_device_do_normalize: InitVar[bool | None] = None
    mm_processor_device: InitVar[Any] = None

    def __post_init__(self, language_model_only: bool, *multimodal: Any) -> None:
        self.tokenizer = self.tokenizer or self.model
        self.served_model_name = self.served_model_name or self.model
        self.runner_type = "generate" if self.runner == "auto" else self.runner
        self.convert_type = "none" if self.convert == "auto" else self.convert
        if isinstance(self.dtype, str) and self.dtype != "auto":
            self.dtype = get_kv_cache_torch_dtype(self.dtype)
        if self.max_model_len is None:
            del self.max_model_len
        # The last one says where images are decoded, which is the decoder's own business.
        names = [each for each in _options(type(self)) if each != "language_model_only"][:-1]
        given = {
            "limit_per_prompt" if name == "limit_mm_per_prompt" else name: value
            for name, value in zip(names, multimodal, strict=False)
            if value is not None
        }
        if self.multimodal_config is None and (given or language_model_only):
            self.multimodal_config = MultiModalConfig(language_model_only, **given)

    def __getattr__(self, name: str) -> Any:
        # Only for what is not set: the fields that the checkpoint fills in.
        if name == "hf_config":
            self.hf_config = value = self._read_checkpoint()
        elif name == "hf_text_config":
            inner = getattr(self.hf_config, "get_text_config", None)
            self.hf_text_config = value = inner() if inner else self.hf_config
        elif name == "max_model_len":
            self.max_model_len = value = int(self._text("max_position_embeddings", "n_positions"))
        else:
            raise AttributeError(
                f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self
            )
        return value

    def _read_checkpoint(self) -> Any:
        try:
            from transformers import AutoConfig
        except ImportError as error:
            raise ImportError(
                f"the configuration of {self.model!r} was asked for, and Transformers, which reads"
                " it, is not installed; install transformers, or set hf_config"
            ) from error
        overrides = self.hf_overrides if isinstance(self.hf_overrides, dict) else {}
        config = AutoConfig.from_pretrained(
            self.hf_config_path or self.model,
            trust_remote_code=self.trust_remote_code,
            revision=self.revision,
            code_revision=self.code_revision,
            token=self.hf_token,
            **overrides,
        )
        return self.hf_overrides(config) if callable(self.hf_overrides) else config

    def _text(self, *names: str, default: Any = None) -> Any:
        """The first of these that the checkpoint's text model says."""
        found = (getattr(self.hf_text_config, name, None) for name in names)
        return next((value for value in found if value is not None), default)

    @property
    def architectures(self) -> list[str]:
        """The names of the classes that can run it."""
        return list(getattr(self.hf_config, "architectures", None) or [])

    @property
    def architecture(self) -> str:
        """The name of the class that runs it."""
        return self.architectures[0]

    def get_vocab_size(self) -> int:
        """How many tokens there are."""
        return int(self._text("vocab_size"))

    def get_hidden_size(self) -> int:
        """The width of its states."""
        return int(self._text("hidden_size", "d_model", "n_embd"))

    def get_head_size(self) -> int:
        """The width of one attention head; for latent attention, of what is cached."""
        if self.use_mla:
            return int(self._text("kv_lora_rank")) + int(self._text("qk_rope_head_dim", default=0))
        heads = int(self._text("num_attention_heads", "n_head"))
        return int(self._text("head_dim", default=self.get_hidden_size() // heads))

    def get_num_attention_heads(self, parallel_config: ParallelConfig) -> int:
        """How many heads of queries one device has."""
        heads = int(self._text("num_attention_heads", "n_head", default=0))
        return heads // parallel_config.tensor_parallel_size

    def get_total_num_kv_heads(self) -> int:
        """How many heads of keys and values there are."""
        heads = self._text("num_attention_heads", "n_head", default=0)
        return int(self._text("num_key_value_heads", "num_kv_heads", default=heads))

    def get_num_kv_heads(self, parallel_config: ParallelConfig) -> int:
        """How many of them one device has; at least one, and one for latent attention."""
        if self.use_mla:
            return 1
        return max(1, self.get_total_num_kv_heads() // parallel_config.tensor_parallel_size)

    def get_total_num_hidden_layers(self) -> int:
        """How many layers there are."""
        return int(self._text("num_hidden_layers", "n_layer", default=0))

    def get_num_layers(self, parallel_config: ParallelConfig) -> int:
        """How many of them one stage of the pipeline has at most."""
        stages = parallel_config.pipeline_parallel_size
        return -(-self.get_total_num_hidden_layers() // stages)

    def get_num_experts(self) -> int:
        """How many experts a layer has; 0 says that it has none."""
        names = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
        return int(self._text(*names, default=0))

    def get_sliding_window(self) -> int | None:
        """How far attention looks back, where that is limited."""
        window = self._text("sliding_window")
        return None if window is None or self.disable_sliding_window else int(window)

    def get_and_verify_max_len(self, max_model_len: int | None) -> int:
        """The longest context: the given one, which must not exceed the model's own.

        Raises:
            ValueError: it does.
        """
        own = int(self._text("max_position_embeddings", "n_positions", default=0))
        if max_model_len in (None, -1):
            return own
        assert max_model_len is not None
        if own and max_model_len > own:
            raise ValueError(
                f"max_model_len is {max_model_len}, and {self.model!r} was made for {own}; lower it"
            )
        return max_model_len

    @property
    def is_deepseek_mla(self) -> bool:
        """Whether attention is latent."""
        return self._text("kv_lora_rank") is not None

    @property
    def use_mla(self) -> bool:
        """Whether latent attention is computed as such; `VLLM_MLA_DISABLE=1` says no."""
        return self.is_deepseek_mla and not envs.VLLM_MLA_DISABLE

    @property
    def is_moe(self) -> bool:
        """Whether layers have experts."""
        return self.get_num_experts() > 0

    @property
    def is_hybrid(self) -> bool:
        """Whether layers of attention and layers of another kind alternate."""
        kinds = set(self._text("layer_types", "layers_block_type", default=()))
        return bool(kinds & _ATTENTION) and not kinds <= _ATTENTION

    @property
    def is_attention_free(self) -> bool:
        """Whether no layer has attention."""
        return not self._text("num_attention_heads", "n_head", default=0)

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether it has an encoder and a decoder."""
        return bool(getattr(self.hf_config, "is_encoder_decoder", False))

    @property
    def is_multimodal_model(self) -> bool:
        """Whether it takes more than text."""
        return self.multimodal_config is not None

    def get_multimodal_config(self) -> MultiModalConfig:
        """How it takes images and the like.

        Raises:
            ValueError: it takes text only.
        """
        if self.multimodal_config is None:
            raise ValueError(f"{self.model!r} takes text only")
        return self.multimodal_config  # type: ignore[no-any-return]

    @property
    def is_quantized(self) -> bool:
        """Whether its weights are quantized."""
        return self.quantization is not None or self._text("quantization_config") is not None


def _options(cls: type[Any]) -> list[str]:
    """The arguments of a dataclass that are no fields, in order."""
    from dataclasses import fields

    known = {each.name for each in fields(cls)}
    return [name for name in cls.__annotations__ if name not in known]

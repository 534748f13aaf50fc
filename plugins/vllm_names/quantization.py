"""Methods of quantization that plugins register, and the classes they derive from."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

__all__ = [
    "QUANTIZATION_METHODS",
    "QuantizationConfig",
    "QuantizeMethodBase",
    "get_quantization_config",
    "is_registered",
    "register_quantization_config",
]

Class = TypeVar("Class", bound=type)

# The names that vLLM knows by itself; their implementations come with vLLM.
_VLLM_METHODS = """
awq auto_awq fp8 fbgemm_fp8 fp_quant modelopt modelopt_fp4 modelopt_mxfp8 modelopt_mixed auto_gptq
gptq gptq_marlin awq_marlin humming compressed-tensors experts_int8 quark moe_wna16 torchao inc
mxfp4 gpt_oss_mxfp4 deepseek_v4_fp8 online fp8_per_tensor fp8_per_block fp8_per_channel
int8_per_channel_weight_only nvfp4_per_token mxfp8
"""
QUANTIZATION_METHODS: list[str] = [*_VLLM_METHODS.split()]

_registered: dict[str, type["QuantizationConfig"]] = {}


class QuantizeMethodBase(ABC):
    """How one layer's quantized weights are made and applied."""

    @abstractmethod
    def create_weights(self, layer: "torch.nn.Module", *args: Any, **kwargs: Any) -> None:
        """Give the layer its parameters."""

    @abstractmethod
    def apply(self, layer: "torch.nn.Module", *args: Any, **kwargs: Any) -> "torch.Tensor":
        """The layer's output."""

    def embedding(self, layer: "torch.nn.Module", *args: Any, **kwargs: Any) -> "torch.Tensor":
        """Rows of the weights, for a method that serves embeddings."""
        raise NotImplementedError(f"{type(self).__name__} does not serve embeddings")

    def process_weights_after_loading(  # noqa: B027
        self, layer: "torch.nn.Module"
    ) -> None:
        """Bring loaded weights into the form that `apply` wants; the default leaves them."""


class QuantizationConfig(ABC):
    """One method of quantization, as a checkpoint describes it."""

    def __init__(self) -> None:
        self.packed_modules_mapping: dict[str, list[str]] = {}

    @abstractmethod
    def get_name(self) -> str:
        """The name under which it is registered."""

    @abstractmethod
    def get_supported_act_dtypes(self) -> "list[torch.dtype]":
        """The dtypes of activations that it takes."""

    @classmethod
    @abstractmethod
    def get_min_capability(cls) -> int:
        """The earliest generation of devices, such as 90; -1 is any."""

    @staticmethod
    @abstractmethod
    def get_config_filenames() -> list[str]:
        """The files of a checkpoint that describe it."""

    @classmethod
    @abstractmethod
    def from_config(cls, config: dict[str, Any]) -> "QuantizationConfig":
        """What a checkpoint's description says."""

    @abstractmethod
    def get_quant_method(self, layer: "torch.nn.Module", prefix: str) -> QuantizeMethodBase | None:
        """How to treat a layer; None leaves it as it is."""

    @classmethod
    def override_quantization_method(
        cls, hf_quant_cfg: Any, user_quant: str | None, **kwargs: Any
    ) -> str | None:
        """The name of the method to use in place of a checkpoint's; None leaves that."""
        return None

    @staticmethod
    def get_from_keys(config: dict[str, Any], keys: list[str]) -> Any:
        """The value of the first of these keys that is there.

        Raises:
            ValueError: none is.
        """
        for key in keys:
            if key in config:
                return config[key]
        raise ValueError(f"the quantization configuration has none of {', '.join(keys)}")

    @staticmethod
    def get_from_keys_or(config: dict[str, Any], keys: list[str], default: Any) -> Any:
        """The same, or a default."""
        return next((config[key] for key in keys if key in config), default)

    def get_cache_scale(self, name: str) -> str | None:
        """The parameter that holds a cache's scale under this name; None says that it is none."""
        return None

    def maybe_update_config(  # noqa: B027
        self, model_name: str, *args: Any, **kwargs: Any
    ) -> None:
        """Complete the configuration once the model is known; the default leaves it."""


def register_quantization_config(quantization: str) -> Callable[[Class], Class]:
    """Decorate the class of a method of quantization; a known name gets the new class.

    Raises:
        ValueError: the class does not derive from `QuantizationConfig`.
    """

    def register(config: Class) -> Class:
        if not issubclass(config, QuantizationConfig):
            raise ValueError(  # noqa: TRY004 - as vLLM does
                f"{config!r} was to be registered for quantization {quantization!r}; derive it from"
                " QuantizationConfig"
            )
        if quantization not in QUANTIZATION_METHODS:
            QUANTIZATION_METHODS.append(quantization)
        _registered[quantization] = config
        return config

    return register


def get_quantization_config(quantization: str) -> type[QuantizationConfig]:
    """The class registered for a method.

    Raises:
        ValueError: nothing is registered under that name.
    """
    if quantization in _registered:
        return _registered[quantization]
    why = "is vLLM's own, and vLLM is not installed" if quantization in QUANTIZATION_METHODS else ""
    raise ValueError(
        f"quantization {quantization!r} {why or 'is not known'}; registered here are"
        f" {', '.join(_registered) or 'none'}. Install the plugin that registers it."
    )


def is_registered(quantization: str) -> bool:
    """Whether a plugin has registered this method."""
    return quantization in _registered

"""Registers a method of quantization with a decorator (ATOM, kunlun, mlu)."""

import os

calls = []


def register():
    """The plugin."""
    from vllm.model_executor.layers.quantization import register_quantization_config
    from vllm.model_executor.layers.quantization.base_config import QuantizationConfig

    calls.append(os.getpid())

    @register_quantization_config("shape4bit")
    class Shape4Bit(QuantizationConfig):
        def get_name(self):
            return "shape4bit"

        def get_supported_act_dtypes(self):
            return []

        @classmethod
        def get_min_capability(cls):
            return 0

        @staticmethod
        def get_config_filenames():
            return []

        @classmethod
        def from_config(cls, config):
            return cls()

        def get_quant_method(self, layer, prefix):
            return None


def effect():
    """What the plugin did."""
    from vllm.model_executor.layers.quantization import get_quantization_config

    return get_quantization_config("shape4bit")().get_name()

"""Names that vLLM 0.33 no longer has and that packages in use still import."""

from enum import Enum, IntEnum
from typing import Any

from mainboard.plugins.vllm_names import current_platform
from mainboard.plugins.vllm_names.inputs import EngineInput

__all__ = ["CompilationLevel", "ProcessorInputs", "_Backend", "cuda_device_count_stateless"]

ProcessorInputs = EngineInput

_NAMES = (
    "FLASH_ATTN FLASH_ATTN_VLLM_V1 TRITON_ATTN TRITON_ATTN_VLLM_V1 XFORMERS XFORMERS_VLLM_V1"
    " ROCM_FLASH ROCM_ATTN ROCM_AITER_MLA ROCM_AITER_MLA_VLLM_V1 ROCM_AITER_FA TORCH_SDPA"
    " TORCH_SDPA_VLLM_V1 FLASHINFER FLASHINFER_VLLM_V1 FLASHINFER_MLA TRITON_MLA"
    " TRITON_MLA_VLLM_V1 CUTLASS_MLA CUTLASS_MLA_VLLM_V1 FLASHMLA FLASHMLA_VLLM_V1 FLASH_ATTN_MLA"
    " HPU_ATTN PALLAS PALLAS_VLLM_V1 IPEX DUAL_CHUNK_FLASH_ATTN DIFFERENTIAL_FLASH_ATTN"
    " NO_ATTENTION FLEX_ATTENTION TREE_ATTN"
)
_Backend: Any = Enum(value="_Backend", names=[*_NAMES.split()], module=__name__)  # type: ignore[misc]


class CompilationLevel(IntEnum):
    """How much is compiled; the names before `CompilationMode`."""

    NO_COMPILATION = 0
    DYNAMO_AS_IS = 1
    DYNAMO_ONCE = 2
    PIECEWISE = 3


def cuda_device_count_stateless() -> int:
    """How many devices are visible."""
    return int(current_platform().device_count())

"""What an inference engine may ask of a platform, with an answer that changes nothing.

Mainboard itself calls none of these. They are here so that a platform written for vLLM's base
class finds every hook it overrides, with the same name and arguments, and so that an engine can
call each of them on any platform. A hook that names a class returns its dotted path; the empty
string says that the platform has none of its own.
"""

from __future__ import annotations

import sys

from mainboard.light_typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta
    from typing import Any, ClassVar

    import torch

__all__ = ["EngineHooks"]


class EngineHooks:
    """Documented no-ops; each is optional, and its default is what it returns here."""

    device_name: str
    simple_compile_backend: str
    additional_env_vars: ClassVar[list[str]] = []
    """Further environment variables that an engine hands on to its workers."""
    ray_noset_device_env_vars: ClassVar[list[str]] = []
    """Variables by which Ray is told to leave the choice of visible devices alone."""

    # Configuration.

    @classmethod
    def pre_register_and_update(cls, parser: Any | None = None) -> None:
        """Called before the engine reads its arguments; may add to `parser`."""

    @classmethod
    def apply_config_platform_defaults(cls, vllm_config: Any) -> None:
        """Called before the engine completes its configuration; may set defaults in it."""

    @classmethod
    def check_and_update_config(cls, vllm_config: Any) -> None:
        """Called with the complete configuration; may change it, or refuse it by raising."""

    @classmethod
    def update_block_size_for_backend(cls, vllm_config: Any) -> None:
        """Called once the attention backends are known; may change the cache's block size."""

    @classmethod
    def register_custom_kv_cache_specs(cls, vllm_config: Any) -> None:
        """Called before the cache is planned; may register kinds of cache of its own."""

    @classmethod
    def validate_environ(cls, hard_fail: bool) -> None:
        """Check environment variables; raise only when `hard_fail`."""

    @classmethod
    def log_warnings(cls) -> None:
        """Log what a person should know about this machine before the engine starts."""

    # Models and requests.

    @classmethod
    def verify_model_arch(cls, model_arch: str) -> None:
        """Refuse an unsupported architecture by raising; the default accepts all."""

    @classmethod
    def validate_request(cls, processed_inputs: Any, params: Any) -> None:
        """Refuse a request by raising; the default accepts all."""

    @classmethod
    def check_max_model_len(cls, max_model_len: int) -> int:
        """The longest context to allow; the default is the one asked for."""
        return max_model_len

    def get_max_output_tokens(self, prompt_len: int) -> int:
        """How many tokens may follow a prompt of this length; the default is no limit."""
        return sys.maxsize

    @classmethod
    def set_additional_forward_context(cls, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Values to carry along with each forward pass; the default is none."""
        return {}

    # Kernels and compilation.

    @classmethod
    def import_kernels(cls) -> None:
        """Import the libraries that hold an engine's own kernels for this platform."""

    @classmethod
    def import_ir_kernels(cls) -> None:
        """Import implementations of an engine's intermediate representation."""

    @classmethod
    def register_triton_kernel_overrides(cls) -> None:
        """Replace an engine's Triton kernels by others that suit this platform."""

    @classmethod
    def get_compile_backend(cls) -> str:
        """The `torch.compile` backend for whole models; the default is the simple one."""
        return cls.simple_compile_backend

    @property
    def pass_key(self) -> str:
        """The compiler setting that an engine's graph passes are attached to."""
        return "post_grad_custom_post_pass"

    @classmethod
    def get_pass_manager_cls(cls) -> str:
        """Path of the class that runs graph passes."""
        return ""

    @classmethod
    def get_default_ir_op_priority(cls, vllm_config: Any) -> Any | None:
        """An order in which to try implementations; None leaves the engine's own order."""
        return None

    @classmethod
    def support_static_graph_mode(cls) -> bool:
        """Whether an engine may capture graphs on this platform."""
        return False

    @classmethod
    def get_static_graph_wrapper_cls(cls) -> str:
        """Path of the class that captures and replays graphs."""
        return ""

    @classmethod
    def opaque_attention_op(cls) -> bool:
        """Whether a compiler must treat attention as one operator that it does not look into."""
        return False

    @classmethod
    def get_punica_wrapper(cls) -> str:
        """Path of the class that applies LoRA adapters."""
        return ""

    @classmethod
    def get_supported_vit_attn_backends(cls) -> list[Any]:
        """Attention backends for vision encoders; the default names none."""
        return []

    @classmethod
    def get_vit_attn_backend(
        cls, head_size: int, dtype: torch.dtype, backend: Any | None = None
    ) -> Any:
        """The attention backend for a vision encoder; the default is the one asked for."""
        return backend

    @classmethod
    def get_mla_prefill_backend_cls(cls, mla_selector_config: Any) -> Any | None:
        """The class that prefills latent attention; None says that there is none."""
        return None

    @classmethod
    def enable_multi_stream_overlap(
        cls, aux_stream_list: list[Any] | None, attn_metadata: object
    ) -> bool:
        """Whether to overlap parts of one layer on several streams."""
        return False

    @classmethod
    def support_deep_gemm(cls) -> bool:
        """Whether the DeepGEMM library runs here."""
        return False

    @classmethod
    def is_arch_support_pdl(cls) -> bool:
        """Whether a kernel may start before the one it depends on has ended."""
        return False

    # Cache, weights and memory.

    @classmethod
    def support_hybrid_kv_cache(cls) -> bool:
        """Whether layers with different kinds of cache may share one memory."""
        return False

    @classmethod
    def check_runner_kv_caches_multi_layer(cls) -> None:
        """Refuse several attention layers of one index, as the default does, by raising."""
        raise NotImplementedError(
            f"several attention layers of one index were asked for; platform "
            f"{cls.device_name!r} does not say that it supports them"
        )

    @classmethod
    def get_kv_cache_config_builder_cls(cls, vllm_config: Any) -> str:
        """Path of the class that plans the cache."""
        return ""

    @classmethod
    def use_sync_weight_loader(cls) -> bool:
        """Whether the device must finish each weight before the next is loaded."""
        return False

    @classmethod
    def make_synced_weight_loader(
        cls, original_weight_loader: Callable[..., Any]
    ) -> Callable[..., Any]:
        """A loader that waits for the device; the default is the loader itself."""
        return original_weight_loader

    @classmethod
    def can_update_inplace(cls) -> bool:
        """Whether tensors on the device may be changed in place."""
        return True

    def is_sleep_mode_available(self) -> bool:
        """Whether weights can leave device memory and return at the same address."""
        return self.is_cumem_allocator_available()

    def is_cumem_allocator_available(self) -> bool:
        """Whether an allocator that can do so is installed."""
        return False

    # Several devices.

    @classmethod
    def get_device_communicator_cls(cls) -> str:
        """Path of the class that runs collective operations."""
        return ""

    @classmethod
    def use_all_gather(cls) -> bool:
        """Whether logits are collected on every device rather than on one."""
        return True

    @classmethod
    def use_custom_allreduce(cls) -> bool:
        """Whether the engine's own all-reduce runs here."""
        return False

    @classmethod
    def use_custom_op_collectives(cls) -> bool:
        """Whether collective operations go through custom operators."""
        return False

    @classmethod
    def stateless_init_device_torch_dist_pg(
        cls,
        backend: str,
        prefix_store: Any,
        group_rank: int,
        group_size: int,
        timeout: timedelta,
    ) -> Any:
        """A process group outside torch's global state.

        Raises:
            NotImplementedError: the platform does not offer one.
        """
        raise NotImplementedError(
            f"a stateless process group with backend {backend!r} was asked for; platform "
            f"{cls.device_name!r} offers none, use torch.distributed.init_process_group"
        )

    @classmethod
    def get_nixl_supported_devices(cls) -> dict[str, tuple[str, ...]]:
        """Kinds of memory that the NIXL library can transfer, by device type."""
        return {}

    @classmethod
    def get_nixl_memory_type(cls) -> str | None:
        """What the NIXL library calls this platform's memory; None leaves it to the library."""
        return None

"""The promise to platform packages: names, arguments and kinds of what they override."""

import copy
import inspect
import pickle
from typing import Any

import pytest

from mainboard.platforms.cpu import CpuPlatform
from mainboard.platforms.cuda import (
    CudaPlatform,
    CudaPlatformBase,
    NonNvmlCudaPlatform,
    NvmlCudaPlatform,
)
from mainboard.platforms.interface import (
    PLATFORM_API_VERSION,
    Capabilities,
    CpuArchEnum,
    DeviceCapability,
    Platform,
    PlatformEnum,
    UnspecifiedPlatform,
)
from mainboard.platforms.rocm import RocmPlatform

BUILT_IN = [CpuPlatform, CudaPlatform, NonNvmlCudaPlatform, RocmPlatform]

# The 24 members that at least four of nine platform packages override, as vLLM 0.33 has them:
# "class" for a class method, "method" for a plain one, else the type of an attribute.
PROMISE = {
    "_enum": ("PlatformEnum", None),
    "device_name": ("str", None),
    "device_type": ("str", None),
    "dispatch_key": ("str", None),
    "ray_device_key": ("str", None),
    "device_control_env_var": ("str", None),
    "supported_quantization": ("list", None),
    "get_device_name": ("class", "(device_id=0)"),
    "get_device_capability": ("class", "(device_id=0)"),
    "get_device_total_memory": ("class", "(device_id=0)"),
    "get_current_memory_usage": ("class", "(device=None)"),
    "set_device": ("class", "(device)"),
    "manual_seed_all": ("class", "(seed)"),
    "is_pin_memory_available": ("class", "()"),
    "get_attn_backend_cls": ("class", "(selected_backend, attn_selector_config, num_heads=None)"),
    "opaque_attention_op": ("class", "()"),
    "check_and_update_config": ("class", "(vllm_config)"),
    "pre_register_and_update": ("class", "(parser=None)"),
    "get_punica_wrapper": ("class", "()"),
    "get_device_communicator_cls": ("class", "()"),
    "get_static_graph_wrapper_cls": ("class", "()"),
    "support_static_graph_mode": ("class", "()"),
    "support_hybrid_kv_cache": ("class", "()"),
    "is_sleep_mode_available": ("method", "(self)"),
}

# Others of vLLM 0.33 that at least one package overrides.
FURTHER = {
    "apply_config_platform_defaults": ("class", "(vllm_config)"),
    "can_update_inplace": ("class", "()"),
    "check_if_supports_dtype": ("class", "(dtype)"),
    "check_max_model_len": ("class", "(max_model_len)"),
    "device_control_id_to_physical_device_id": ("class", "(device_id)"),
    "device_id_to_physical_device_id": ("class", "(device_id)"),
    "fp8_dtype": ("class", "()"),
    "get_all_gpu_pci_bus_ids": ("class", "()"),
    "get_compile_backend": ("class", "()"),
    "get_cpu_architecture": ("class", "()"),
    "get_default_ir_op_priority": ("class", "(vllm_config)"),
    "get_device_uuid": ("class", "(device_id=0)"),
    "get_infinity_values": ("class", "(dtype)"),
    "get_max_output_tokens": ("method", "(self, prompt_len)"),
    "get_nixl_memory_type": ("class", "()"),
    "get_nixl_supported_devices": ("class", "()"),
    "get_pass_manager_cls": ("class", "()"),
    "get_supported_vit_attn_backends": ("class", "()"),
    "get_vit_attn_backend": ("class", "(head_size, dtype, backend=None)"),
    "has_device_capability": ("class", "(capability, device_id=0)"),
    "import_ir_kernels": ("class", "()"),
    "import_kernels": ("class", "()"),
    "inference_mode": ("class", "()"),
    "is_cumem_allocator_available": ("method", "(self)"),
    "is_device_capability": ("class", "(capability, device_id=0)"),
    "is_device_capability_family": ("class", "(capability, device_id=0)"),
    "is_fp8_fnuz": ("class", "()"),
    "is_integrated_gpu": ("class", "(device_id=0)"),
    "log_warnings": ("class", "()"),
    "logical_device_id_to_visible_device_id": ("class", "(device_id)"),
    "make_synced_weight_loader": ("class", "(original_weight_loader)"),
    "num_compute_units": ("class", "(device_id=0)"),
    "register_custom_kv_cache_specs": ("class", "(vllm_config)"),
    "set_additional_forward_context": ("class", "(*args, **kwargs)"),
    "stateless_init_device_torch_dist_pg": (
        "class",
        "(backend, prefix_store, group_rank, group_size, timeout)",
    ),
    "support_deep_gemm": ("class", "()"),
    "supports_fp8": ("class", "()"),
    "supports_mx": ("class", "()"),
    "update_block_size_for_backend": ("class", "(vllm_config)"),
    "use_all_gather": ("class", "()"),
    "use_custom_allreduce": ("class", "()"),
    "use_custom_op_collectives": ("class", "()"),
    "use_sync_weight_loader": ("class", "()"),
    "uses_host_device_handling": ("method", "(self)"),
    "validate_environ": ("class", "(hard_fail)"),
    "validate_request": ("class", "(processed_inputs, params)"),
    "verify_model_arch": ("class", "(model_arch)"),
    "verify_quantization": ("class", "(quant)"),
    "visible_device_id_to_physical_device_id": ("class", "(device_id)"),
}


def _shape(cls: type, name: str) -> tuple[str, str | None]:
    """A member's kind, and its parameters without annotations."""
    member = inspect.getattr_static(cls, name)
    if not isinstance(member, classmethod) and not inspect.isfunction(member):
        return type(member).__name__, None
    kind = "class" if isinstance(member, classmethod) else "method"
    signature = inspect.signature(getattr(cls, name))
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    return kind, str(inspect.Signature(bare))


def test_the_promise_is_of_24_members() -> None:
    """No member leaves the table unnoticed."""
    assert 24 == len(PROMISE)


@pytest.mark.parametrize("name", sorted(PROMISE | FURTHER))
def test_promised_member(name: str) -> None:
    """The base class has the member with the kind and the parameters written down here."""
    assert (PROMISE | FURTHER)[name] == _shape(Platform, name)


@pytest.mark.parametrize("cls", BUILT_IN)
@pytest.mark.parametrize("name", sorted(name for name, (_, args) in PROMISE.items() if args))
def test_built_in_platforms_keep_the_promise(cls: type[Platform], name: str) -> None:
    """An override in a built-in platform takes what the base class takes."""
    assert PROMISE[name] == _shape(cls, name)


@pytest.mark.parametrize(
    ("cls", "identity"),
    [
        (CpuPlatform, (PlatformEnum.CPU, "cpu", "cpu", "CPU", "gloo", "")),
        (CudaPlatform, (PlatformEnum.CUDA, "cuda", "cuda", "CUDA", "nccl", "GPU")),
        (NonNvmlCudaPlatform, (PlatformEnum.CUDA, "cuda", "cuda", "CUDA", "nccl", "GPU")),
        (RocmPlatform, (PlatformEnum.ROCM, "rocm", "cuda", "CUDA", "nccl", "GPU")),
        (UnspecifiedPlatform, (PlatformEnum.UNSPECIFIED, "unspecified", "", "CPU", "", "")),
    ],
)
def test_identity(cls: type[Platform], identity: tuple[Any, ...]) -> None:
    """Each platform says who it is, in the words that vLLM's has."""
    platform = cls()
    assert identity == (
        platform._enum,
        platform.device_name,
        platform.device_type,
        platform.dispatch_key,
        platform.dist_backend,
        platform.ray_device_key,
    )


@pytest.mark.parametrize(
    ("cls", "true"),
    [
        (CpuPlatform, {"is_cpu"}),
        (CudaPlatform, {"is_cuda", "is_cuda_alike"}),
        (RocmPlatform, {"is_rocm", "is_cuda_alike"}),
        (UnspecifiedPlatform, {"is_unspecified"}),
    ],
)
def test_questions_of_vendor(cls: type[Platform], true: set[str]) -> None:
    """Exactly the questions that fit a platform are answered with yes."""
    asked = ["is_cpu", "is_cuda", "is_cuda_alike", "is_out_of_tree", "is_rocm", "is_tpu"]
    asked += ["is_unspecified", "is_xpu", "is_zen_cpu"]
    assert true == {name for name in asked if getattr(cls(), name)()}


def test_names_for_nvidia_that_vllm_has() -> None:
    """All of vLLM's class names can be imported, and derived from, without the hardware."""
    assert NvmlCudaPlatform is CudaPlatform
    assert issubclass(CudaPlatform, CudaPlatformBase)
    assert issubclass(NonNvmlCudaPlatform, CudaPlatformBase)

    class Vendor(NonNvmlCudaPlatform):
        device_name = "vendor"

    assert Vendor().is_cuda() and Vendor().device_name == "vendor"


def test_vendor_class_with_an_attribute_for_an_operation() -> None:
    """A function put in the place of a delegate is used, as platform packages do."""

    class Vendor(Platform):
        _enum = PlatformEnum.OOT
        current_stream = staticmethod(lambda device=None: ("stream", device))  # type: ignore[assignment]

    assert ("stream", None) == Vendor().current_stream()
    assert Vendor().is_out_of_tree()


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("synchronise", "synchronize"), ("device_typ", "device_type"), ("mem_info", "mem_get_info")],
)
def test_unknown_attribute(wrong: str, right: str) -> None:
    """An unknown name is an error that shows the names it may have meant."""
    with pytest.raises(AttributeError, match=f"'CpuPlatform' has no attribute '{wrong}'") as raised:
        getattr(CpuPlatform(), wrong)
    assert right in str(raised.value)
    assert not hasattr(CpuPlatform(), wrong)


def test_attribute_error_inside_a_property_is_not_hidden() -> None:
    """What goes wrong in a property is reported, not the property's absence."""

    class Vendor(Platform):
        @property
        def pass_key(self) -> str:
            return [].missing  # type: ignore[attr-defined,no-any-return]

    with pytest.raises(AttributeError, match="'list' object has no attribute 'missing'"):
        _ = Vendor().pass_key


def test_platform_objects_can_be_copied_and_pickled() -> None:
    """Looking for special methods does not end in the answer for unknown names."""
    assert isinstance(copy.deepcopy(CpuPlatform()), CpuPlatform)
    assert isinstance(pickle.loads(pickle.dumps(CpuPlatform())), CpuPlatform)


def test_unoffered_facts_say_who_does_not_offer_them() -> None:
    """The base class names the member and the platform, instead of answering nonsense."""
    names = ("get_device_name", "get_device_uuid", "get_device_total_memory", "num_compute_units")
    for name in (*names, "get_all_gpu_pci_bus_ids"):
        with pytest.raises(NotImplementedError, match=f"{name} was asked for.*'unspecified'"):
            getattr(UnspecifiedPlatform, name)()


def test_capability_is_a_tuple_with_names() -> None:
    """A capability compares as a tuple, and is written as a version or a number."""
    capability = DeviceCapability(9, 0)
    assert capability >= (8, 9)
    assert ("9.0", 90) == (capability.as_version_str(), capability.to_int())


def test_capability_without_a_single_number() -> None:
    """A minor number of two digits is refused rather than confused with another capability."""
    with pytest.raises(ValueError, match=r"8\.10 cannot be one number"):
        DeviceCapability(8, 10).to_int()


def test_capability_questions() -> None:
    """The questions take a pair or a number, and are answered no where there is no capability."""

    class Vendor(Platform):
        @classmethod
        def get_device_capability(cls, device_id: int = 0) -> DeviceCapability | None:
            return DeviceCapability(8, 9) if device_id == 0 else None

    assert Vendor.has_device_capability((8, 0)) and Vendor.has_device_capability(89)
    assert not Vendor.has_device_capability(90) and not Vendor.has_device_capability((8, 0), 1)
    assert Vendor.is_device_capability(89) and not Vendor.is_device_capability((8, 0))
    assert Vendor.is_device_capability_family(80) and not Vendor.is_device_capability_family(90)


def test_quantization_is_refused_by_name() -> None:
    """A platform with a list refuses what is not on it; one without refuses nothing."""

    class Vendor(Platform):
        device_name = "vendor"
        supported_quantization = ["awq"]  # noqa: RUF012 - as platform packages write it

    Vendor.verify_quantization("awq")
    Platform.verify_quantization("anything")
    with pytest.raises(ValueError, match=r"'gptq' was asked for, but platform 'vendor'.*awq"):
        Vendor.verify_quantization("gptq")


def test_capabilities_are_cautious() -> None:
    """A platform that says nothing promises nothing but torch's common dtypes."""
    described = Capabilities().to_dict()
    assert ["bfloat16", "float16", "float32"] == described.pop("dtypes")
    assert ["float32"] == described.pop("native_dtypes")
    assert not any(described.values())


def test_the_contract_has_a_version() -> None:
    """The version is a pair of numbers that a package can compare."""
    assert PLATFORM_API_VERSION >= (1, 0)


def test_every_public_member_says_what_it_is() -> None:
    """No public member of the contract is without a docstring."""
    undocumented = [
        name
        for name in dir(Platform)
        if not name.startswith("_")
        and not isinstance(inspect.getattr_static(Platform, name), str | list)
        and not inspect.getdoc(inspect.getattr_static(Platform, name))
    ]
    assert undocumented == []


def test_architectures_are_those_of_vllm() -> None:
    """The enumerations have the members that platform packages compare with."""
    assert {"X86", "ARM", "POWERPC", "S390X", "RISCV", "OTHER", "UNKNOWN"} == {
        member.name for member in CpuArchEnum
    }
    assert ["CUDA", "ROCM", "TPU", "XPU", "CPU", "OOT", "UNSPECIFIED"] == [
        member.name for member in PlatformEnum
    ]

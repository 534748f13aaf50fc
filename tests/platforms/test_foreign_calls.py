"""Platforms of other releases and other hosts: what they are called with, and what is said of them."""

from types import SimpleNamespace

import pytest

from mainboard.errors import PlatformContractError
from mainboard.platforms import Platform, PlatformEnum
from mainboard.platforms.cpu import CpuPlatform
from mainboard.platforms.foreign_calls import (
    attention_backend,
    call_hook,
    call_with,
    drift,
    find_member,
)

PATH = "acme.attention.Backend"
CONFIG = SimpleNamespace(
    head_size=128,
    dtype="bfloat16",
    kv_cache_dtype="auto",
    block_size=16,
    use_mla=False,
    has_sink=True,
    use_sparse=False,
    attn_type="decoder",
)


def today(cls, selected_backend, attn_selector_config, num_heads):
    """Eight packages."""
    return attn_selector_config is CONFIG and num_heads == 32


def without_heads(cls, selected_backend, attn_selector_config):
    """As Kunlun's."""
    return attn_selector_config is CONFIG


def open_ended(cls, selected_backend, *args, **kwargs):
    """As Spyre's."""
    return not args and kwargs == {"attn_selector_config": CONFIG, "num_heads": 32}


def half_open(cls, selected_backend, attn_selector_config, **kwargs):
    """As the TPU's: a rest that it hands on gets nothing that is not today's."""
    return attn_selector_config is CONFIG and kwargs == {"num_heads": 32}


def one_by_one(
    cls, selected_backend, head_size, dtype, kv_cache_dtype, block_size, use_v1, use_mla
):
    """Six packages."""
    return (head_size, block_size, use_v1, use_mla) == (128, 16, True, False)


def with_sinks(
    cls,
    selected_backend,
    head_size,
    dtype,
    kv_cache_dtype,
    block_size,
    use_v1,
    use_mla,
    has_sink,
    use_sparse,
):
    """As Sophgo's."""
    return has_sink is True and use_sparse is False


def without_v1(
    cls,
    selected_backend,
    head_size,
    dtype,
    kv_cache_dtype,
    block_size,
    use_mla,
    has_sink,
    use_sparse,
    attn_type,
):
    """As omni-npu's."""
    return (dtype, attn_type) == ("bfloat16", "decoder")


def both(
    cls,
    selected_backend,
    attn_selector_config,
    head_size,
    dtype,
    kv_cache_dtype,
    block_size,
    use_v1,
    use_mla,
    has_sink,
):
    """As MUSA's."""
    return attn_selector_config is CONFIG and head_size == 128


def with_training(
    cls,
    selected_backend,
    head_size,
    dtype,
    kv_cache_dtype,
    block_size,
    use_v1,
    use_mla,
    is_training,
    config,
):
    """As an OpenVINO fork's."""
    return is_training is False and config is CONFIG


FORMS = [
    today,
    without_heads,
    open_ended,
    half_open,
    one_by_one,
    with_sinks,
    without_v1,
    both,
    with_training,
]


def with_method(method, name="get_attn_backend_cls", base=Platform):
    """A platform class with this one method."""
    body = {"_enum": PlatformEnum.OOT, "device_name": "acme", name: classmethod(method)}
    return type("AcmePlatform", (base,), body)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_every_form_of_get_attn_backend_cls_is_served(form):
    """Each gets what it names and nothing else, and its answer comes back."""
    asked = []

    def method(cls, selected_backend, *args, **kwargs):
        asked.append(selected_backend)
        return PATH if form(cls, selected_backend, *args, **kwargs) else "wrong arguments"

    # The signature is the form's own.
    method.__wrapped__ = form
    platform = with_method(method)()
    assert attention_backend(platform, "CUSTOM", CONFIG, 32) == PATH
    assert asked == ["CUSTOM"]


class Member:
    """As a member of an enumeration of backends answers."""

    def get_path(self):
        """The class's path."""
        return PATH


@pytest.mark.parametrize(
    ("answer", "meaning"),
    [(None, None), ("", None), (PATH, PATH), (Member, Member), (Member(), PATH)],
)
def test_what_an_answer_means(answer, meaning):
    """Empty and None are no backend; a path, a class and a member of an enumeration are one."""
    platform = with_method(lambda cls, selected_backend, **rest: answer)()
    assert attention_backend(platform, None, CONFIG) is meaning


def test_another_answer_is_an_error_that_says_what_was_expected():
    """A number is no backend."""
    platform = with_method(lambda cls, selected_backend, **rest: 7)()
    with pytest.raises(
        PlatformContractError, match=r"returned 7; expected 'package\.module\.Class'"
    ):
        attention_backend(platform, None, CONFIG)


def test_the_built_in_and_the_default_are_served_alike():
    """The CPU names its backend, the base class none."""
    assert attention_backend(CpuPlatform(), None, CONFIG, 8).endswith("CpuAttentionBackend")
    assert attention_backend(Platform(), None, CONFIG, 8) is None


def test_a_required_argument_that_nobody_has_is_named():
    """The error has the function, the argument and what there is."""

    def method(cls, selected_backend, tensor_cores):
        return PATH

    with pytest.raises(PlatformContractError, match=r"requires 'tensor_cores'.*num_heads"):
        attention_backend(with_method(method)(), None, CONFIG)


def test_positional_only_and_builtin_functions():
    """The first get theirs in order; those without a signature get everything."""

    def method(first, second, /, third=3):
        return first, second, third

    assert call_with(method, 1, current={"second": 2}) == (1, 2, 3)
    assert call_with(dict, current={"a": 1}, older={"b": 2}) == {"a": 1}


class Lenient:
    """As vLLM's base class: it answers any name with None, and knows nothing of ours."""

    device_name = "lenient"
    device_type = "cpu"

    def __getattr__(self, name):
        return None

    @classmethod
    def get_device_name(cls, device=0):
        """Of one device; under another name than the contract's."""
        return f"device {device}"

    @classmethod
    def set_additional_forward_context(cls, *args):
        """Whatever comes."""
        return args

    def seed_everything(self, seed):
        """Went long ago."""

    def check_max_model_len(self):
        """Without the length."""
        return 5

    def get_max_output_tokens(self, prompt_len):
        """An instance's own."""
        return prompt_len + 1


def test_a_member_is_what_the_class_defines():
    """`__getattr__` does not count, and neither does a class attribute that is None count out."""
    lenient = Lenient()
    assert lenient.capabilities is None
    assert find_member(lenient, "capabilities") is None
    assert find_member(lenient, "capabilities", 5) == 5
    assert find_member(lenient, "device_name") == "lenient"
    lenient.extra = None
    assert find_member(lenient, "extra", 5) is None


def test_hooks_of_a_foreign_platform_are_called_with_what_they_take():
    """Renamed, fewer, any number, and missing altogether."""
    lenient = Lenient()
    assert call_hook(lenient, "get_device_name", 3) == "device 3"
    assert call_hook(lenient, "check_max_model_len", 100) == 5
    assert call_hook(lenient, "set_additional_forward_context", 1, 2) == (1, 2)
    assert call_hook(lenient, "get_max_output_tokens", 9) == 10
    assert call_hook(lenient, "capabilities", 0) == Platform.capabilities()
    assert call_hook(lenient, "has_device_capability", 90) is False
    assert call_hook(lenient, "is_out_of_tree") is False
    lenient.is_pin_memory_available = True
    with pytest.raises(
        PlatformContractError, match="is_pin_memory_available is True, which cannot"
    ):
        call_hook(lenient, "is_pin_memory_available")


def test_our_own_platforms_do_not_drift():
    """The contract, the CPU, and a class that overrides as the contract says."""
    assert drift(Platform) == drift(CpuPlatform()) == drift(with_method(today)) == []


def test_drift_is_told_by_member_and_kind():
    """What is missing, what went, and which signature is another."""
    found = {(each.member, each.kind): each.detail for each in drift(Lenient())}
    assert "contract's default answers" in found["capabilities", "missing"]
    assert "see manual_seed_all" in found["seed_everything", "retired"]
    assert "calls 'device_id' 'device'" in found["get_device_name", "signature"]
    assert "too many positional arguments" in found["check_max_model_len", "signature"]
    assert ("get_max_output_tokens", "signature") not in found
    for form in (without_heads, one_by_one, both):
        [only] = drift(with_method(form))
        assert (only.member, only.kind) == ("get_attn_backend_cls", "signature")
    assert "is 7, not a function" in drift(type("P", (Platform,), {"is_cuda": 7}))[0].detail

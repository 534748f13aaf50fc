"""A general plugin that registers one model by name."""


def register():
    """Register MyLlava unless somebody has."""
    from vllm import ModelRegistry

    if "MyLlava" not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model("MyLlava", "vllm_add_dummy_model.my_llava:MyLlava")

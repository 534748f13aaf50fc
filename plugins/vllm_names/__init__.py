"""What the vllm alias needs that has no other home in Mainboard."""

__all__ = ["VERSION"]

# The release whose names and signatures are followed. The local part says that it is not vLLM.
VERSION = "0.33.0+mainboard"

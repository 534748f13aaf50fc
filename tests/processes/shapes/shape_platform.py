"""A platform whose device is there when SHAPE_DEVICES says so."""

import os

from vllm.platforms import Platform, PlatformEnum


class ShapePlatform(Platform):
    """The platform."""

    _enum = PlatformEnum.OOT
    device_name = "shape"
    device_type = "cpu"


def register():
    """The plugin."""
    return None if os.environ.get("SHAPE_DEVICES", "0") == "" else ShapePlatform

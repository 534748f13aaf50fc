"""A plugin that asks for the platform while it is asked to offer one."""


def register() -> str:
    """Ask at once, instead of where the answer is needed."""
    from mainboard.platforms import current_platform

    return f"{current_platform.device_type}.Platform"

"""The model that the plugin registers; imported when it is resolved, not before."""


class MyLlava:
    """Stands for a model class."""

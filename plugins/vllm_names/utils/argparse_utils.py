"""`FlexibleArgumentParser`: the argument parser that engines hand to platforms."""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from typing import Any

__all__ = ["FlexibleArgumentParser"]


class FlexibleArgumentParser(ArgumentParser):
    """An argument parser for options with dashes or underscores, and for parts of JSON options.

    `--max_num_seqs 5` is `--max-num-seqs 5`, and `--config.depth 2 --config.name a` is
    `--config '{"depth": 2, "name": "a"}'`.
    """

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Namespace | None = None
    ) -> tuple[Namespace, list[str]]:
        """The options of a command line, and what is none of them."""
        given = list(sys.argv[1:] if args is None else args)
        found, rest = super().parse_known_args(
            _gather([_dashed(each) for each in given]), namespace
        )
        assert found is not None
        return found, rest

    def add_argument(self, *args: Any, **kwargs: Any) -> Any:
        """Add an option; `deprecated=True` is left to Pythons that know it."""
        if sys.version_info < (3, 13):
            kwargs.pop("deprecated", None)
        return super().add_argument(*args, **kwargs)


def _dashed(argument: str) -> str:
    """The option with dashes in its name; its value, and what is inside JSON, as they are."""
    if not argument.startswith("--"):
        return argument
    option, equals, value = argument.partition("=")
    name, dot, inside = option.partition(".")
    return "--" + name[2:].replace("_", "-") + dot + inside + equals + value


def _gather(arguments: list[str]) -> list[str]:
    """Put the parts `--option.key value` of each option together as one JSON value."""
    rest: list[str] = []
    parts: dict[str, dict[str, Any]] = {}
    waiting = iter(arguments)
    for argument in waiting:
        option, equals, value = argument.partition("=")
        name, dot, path = option.partition(".")
        if not (name.startswith("--") and dot):
            rest.append(argument)
            continue
        text = value if equals else next(waiting, None)
        if text is None:
            rest.append(argument)  # argparse says what is wrong with it
            continue
        *outer, last = path.split(".")
        inside = parts.setdefault(name, {})
        for key in outer:
            inside = inside.setdefault(key, {})
        inside[last] = _value(text)
    if parts:
        from json import dumps

        for name, value_of in parts.items():
            rest += [name, dumps(value_of)]
    return rest


def _value(text: str) -> Any:
    from json import loads

    try:
        return loads(text)
    except ValueError:
        return text

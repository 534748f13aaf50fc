"""Registries of parsers: of what a model thinks, and of the tools that it calls.

A parser is registered as a class, or as the name of one that is imported when it is asked for.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from importlib import import_module
from typing import Any, ClassVar, TypeVar

from mainboard.errors import PluginLoadError

__all__ = ["ReasoningParser", "ReasoningParserManager", "ToolParser", "ToolParserManager"]

Class = TypeVar("Class", bound=type)


class _Manager:
    """Parser classes by name; each kind of parser has a registry of its own."""

    _base: ClassVar[type[Any]]
    _kind: ClassVar[str]
    lazy_parsers: ClassVar[dict[str, tuple[str, str]]]

    @classmethod
    def _loaded(cls) -> dict[str, type[Any]]:
        raise NotImplementedError

    @classmethod
    def register_lazy_module(cls, name: str, module_path: str, class_name: str) -> None:
        """Let a name stand for a class that is imported when it is asked for."""
        cls._loaded().pop(name, None)
        cls.lazy_parsers[name] = (module_path, class_name)

    @classmethod
    def register_module(
        cls, name: str | list[str] | None = None, force: bool = True, module: Class | None = None
    ) -> Class | Callable[[Class], Class]:
        """Let names stand for a class: a decorator, unless `module` is given.

        Args:
            name: the name or names; the default is the class's own.
            force: whether to replace what has the name already.
            module: the class.

        Raises:
            TypeError: the class is no parser of this kind.
            KeyError: the name is taken and `force` is false.
        """

        def register(parser: Class) -> Class:
            if not (isinstance(parser, type) and issubclass(parser, cls._base)):
                raise TypeError(
                    f"{parser!r} was to be registered as a {cls._kind}; derive it from"
                    f" {cls._base.__name__}"
                )
            for each in [name] if isinstance(name, str) else name or [parser.__name__]:
                if not force and each in cls.list_registered():
                    raise KeyError(
                        f"the {cls._kind} {each!r} is registered; force=True replaces it"
                    )
                cls._loaded()[each] = parser
            return parser

        return register if module is None else register(module)

    @classmethod
    def list_registered(cls) -> list[str]:
        """Every name, sorted."""
        return sorted({*cls._loaded(), *cls.lazy_parsers})

    @classmethod
    def _get(cls, name: str) -> type[Any]:
        if name in cls._loaded():
            return cls._loaded()[name]
        if name not in cls.lazy_parsers:
            known = ", ".join(cls.list_registered()) or "none"
            raise KeyError(
                f"no {cls._kind} {name!r} is registered; registered are {known}. Install the plugin"
                " that registers it."
            )
        module, class_name = cls.lazy_parsers[name]
        try:
            parser = getattr(import_module(module), class_name)
        except Exception as error:
            raise PluginLoadError(
                f"the {cls._kind} {name!r} is registered as {module}:{class_name}, which cannot be"
                f" imported: {type(error).__name__}: {error}. Repair the package that registered it."
            ) from error
        cls.register_module(name, module=parser)
        return parser  # type: ignore[no-any-return]


class ReasoningParser:
    """The base class of parsers that tell a model's thoughts from its answer."""

    def __init__(self, tokenizer: Any, *args: Any, **kwargs: Any) -> None:
        self.model_tokenizer = tokenizer

    @cached_property
    def vocab(self) -> dict[str, int]:
        """The ids of the tokenizer's tokens."""
        return dict(self.model_tokenizer.get_vocab())

    def is_reasoning_end(self, input_ids: Sequence[int]) -> bool:
        """Whether the thoughts have ended within these tokens."""
        raise NotImplementedError

    def is_reasoning_end_streaming(
        self, input_ids: Sequence[int], delta_ids: Sequence[int]
    ) -> bool:
        """The same while tokens arrive; the default looks at all of them."""
        return self.is_reasoning_end(input_ids)

    def extract_content_ids(self, input_ids: list[int]) -> list[int]:
        """The tokens of the answer."""
        raise NotImplementedError

    def extract_reasoning(self, model_output: str, request: Any) -> tuple[str | None, str | None]:
        """The thoughts and the answer of a whole output."""
        raise NotImplementedError

    def extract_reasoning_streaming(self, *args: Any, **kwargs: Any) -> Any | None:
        """What the newest tokens add to either."""
        raise NotImplementedError

    def adjust_request(self, request: Any) -> Any:
        """The request as this parser needs it; the default leaves it."""
        return request


class ReasoningParserManager(_Manager):
    """Parsers of thoughts by name."""

    _base = ReasoningParser
    _kind = "reasoning parser"
    reasoning_parsers: ClassVar[dict[str, type[ReasoningParser]]] = {}
    lazy_parsers: ClassVar[dict[str, tuple[str, str]]] = {}

    @classmethod
    def _loaded(cls) -> dict[str, type[Any]]:
        return cls.reasoning_parsers

    @classmethod
    def get_reasoning_parser(cls, name: str) -> type[ReasoningParser]:
        """The class of this name, imported now if need be.

        Raises:
            KeyError: nothing has that name.
            PluginLoadError: the class cannot be imported.
        """
        return cls._get(name)


class ToolParser:
    """The base class of parsers that find the tools a model calls."""

    def __init__(self, tokenizer: Any, tools: Any | None = None) -> None:
        self.model_tokenizer = tokenizer
        self.tools = tools
        self.prev_tool_call_arr: list[dict[str, Any]] = []
        self.current_tool_id = -1
        self.current_tool_name_sent = False
        self.streamed_args_for_tool: list[str] = []

    @cached_property
    def vocab(self) -> dict[str, int]:
        """The ids of the tokenizer's tokens."""
        return dict(self.model_tokenizer.get_vocab())

    def adjust_request(self, request: Any) -> Any:
        """The request as this parser needs it; the default leaves it."""
        return request

    def extract_tool_calls(self, model_output: str, request: Any) -> Any:
        """The calls in a whole output."""
        raise NotImplementedError

    def extract_tool_calls_streaming(self, *args: Any, **kwargs: Any) -> Any | None:
        """What the newest tokens add to them."""
        raise NotImplementedError


class ToolParserManager(_Manager):
    """Parsers of tool calls by name."""

    _base = ToolParser
    _kind = "tool parser"
    tool_parsers: ClassVar[dict[str, type[ToolParser]]] = {}
    lazy_parsers: ClassVar[dict[str, tuple[str, str]]] = {}

    @classmethod
    def _loaded(cls) -> dict[str, type[Any]]:
        return cls.tool_parsers

    @classmethod
    def get_tool_parser(cls, name: str) -> type[ToolParser]:
        """The class of this name, imported now if need be.

        Raises:
            KeyError: nothing has that name.
            PluginLoadError: the class cannot be imported.
        """
        return cls._get(name)

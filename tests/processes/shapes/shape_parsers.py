"""Names parsers of reasoning and of tool calls that are imported later (tt, hcx, prime-rl)."""

import os

from vllm.reasoning import ReasoningParser, ReasoningParserManager
from vllm.tool_parsers import ToolParser, ToolParserManager

calls = []


class Reasoning(ReasoningParser):
    """What is registered as a parser of reasoning."""


class Tools(ToolParser):
    """What is registered as a parser of tool calls."""


def register():
    """The plugin."""
    calls.append(os.getpid())
    ReasoningParserManager.register_lazy_module("shape", "shape_parsers", "Reasoning")
    ToolParserManager.register_lazy_module("shape", "shape_parsers", "Tools")


def effect():
    """What the plugin did."""
    return [
        ReasoningParserManager.get_reasoning_parser("shape") is Reasoning,
        ToolParserManager.get_tool_parser("shape") is Tools,
    ]

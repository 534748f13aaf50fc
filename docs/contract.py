"""Write `contract.md` from the classes themselves: `python docs/contract.py`.

The sources are read, not imported, so the page needs no installation, and it shows a default as
the class has it.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "contract.md"

# What a reader meets first is first; each class with the title of its part.
CLASSES = (
    ("interface.py", "Platform", "Identity"),
    ("device_ops.py", "DeviceOperations", "Operations on devices"),
    ("device_ids.py", "DeviceIds", "The three spaces of ids"),
    ("engine_hooks.py", "EngineHooks", "Hooks of an inference engine"),
    ("values.py", "Capabilities", "Fields of Capabilities"),
)
REQUIRED = ("_enum", "device_name", "device_type")

HEAD = """# The contract, member by member

<!-- Written by `python docs/contract.py` from the classes in `platforms/`. Do not edit. -->

This is `mainboard.platforms.Platform`, whose names and arguments are those of vLLM 0.33's class \
wherever vendors override them, at contract version {version}. \
A platform must set {required}; everything else is optional, and the table says what a platform \
has that does not define it. [For authors of plugins](authors.md) says how to write one, and what \
the version promises.

*On* says on what a member is called: the *class* (a class method), an *object*, a *property*, or \
an *attribute*. A default that is code is what the member returns; *computed* means that the \
description says how.
"""


class Member(NamedTuple):
    """One row."""

    name: str
    called_on: str
    default: str
    meaning: str


def page() -> str:
    """The whole document."""
    required = ", ".join(f"`{name}`" for name in REQUIRED[:-1]) + f" and `{REQUIRED[-1]}`"
    parts = [HEAD.format(version=_version(), required=required)]
    for file, name, title in CLASSES:
        source = (ROOT / "platforms" / file).read_text()
        for heading, members in sections(source, name, title):
            rows = "".join(f"| {' | '.join(map(_cell, member))} |\n" for member in members)
            parts.append(f"{heading}\n| member | on | default | what it is |\n|---|---|---|---|\n")
            parts[-1] += rows
    return "\n".join(parts)


def sections(source: str, name: str, title: str) -> Iterator[tuple[str, list[Member]]]:
    """The class's members by the comments that divide it, each part with its heading."""
    (body,) = [
        node.body
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef) and node.name == name
    ]
    dividers = _dividers(source, body)
    found: dict[int, list[Member]] = {}
    told = _arguments(body)
    for node, following in zip(body, [*body[1:], None], strict=True):
        line = max((at for at in dividers if at < node.lineno), default=0)
        if member := _member(node, following, told):
            found.setdefault(line, []).append(member)
    heading = f"## {title}\n"
    if 0 not in found:
        yield heading, []
    for line, members in found.items():
        if line:
            first, dot, rest = dividers[line].partition(". ")
            heading = f"### {first.rstrip('.')}\n" + (f"\n{rest}\n" if dot else "")
        yield heading, members


def _dividers(source: str, body: list[ast.stmt]) -> dict[int, str]:
    """Comments of the class between empty lines, by line."""
    lines = source.splitlines()
    last = max(node.end_lineno or node.lineno for node in body)
    return {
        number: lines[number - 1].strip("# ")
        for number in range(body[0].lineno, last)
        if re.match(r"    # \S", lines[number - 1])
        and not lines[number - 2].strip()
        and not lines[number].strip()
    }


def _arguments(body: list[ast.stmt]) -> dict[str, str]:
    """What the class's docstring says of each field."""
    docstring = ast.get_docstring(ast.Module(body, [])) or ""
    found = re.findall(r"^    (\w+): (.+(?:\n {6,}\S.*)*)", docstring, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


def _member(node: ast.stmt, following: ast.stmt | None, told: dict[str, str]) -> Member | None:
    if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
        return _function(node)
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
        name = node.target.id
        if name.startswith("_") and name not in REQUIRED:
            return None
        meaning = told.get(name, "")
        meaning = meaning[:1].upper() + meaning[1:]
        if name == "_enum":
            meaning = "Its kind: `PlatformEnum.OOT` for one that is not built in."
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            meaning = _first_sentence(str(following.value.value))
        default = "required" if name in REQUIRED else f"`{ast.unparse(node.value)}`"
        return Member(f"`{name}`", "attribute", default, meaning)
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
        (target,) = node.targets
        name = ast.unparse(target)
        return Member(
            f"`{name}`", "class", f"`torch.<device_type>.{name}`", "The class of that name."
        )
    return None


def _function(node: ast.FunctionDef) -> Member:
    decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
    meaning = _first_sentence(ast.get_docstring(node) or "")
    if "property" in decorators:
        return Member(f"`{node.name}`", "property", _default(node), meaning)
    called_on = "class" if "classmethod" in decorators else "object"
    arguments = ast.arguments(**vars(node.args))
    arguments.args = arguments.args[1:]
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    signature = f"{node.name}({ast.unparse(arguments)}){returns}"
    signature = re.sub(r"(: [^=,]+)=", r"\1 = ", signature.replace("'", ""))
    return Member(f"`{signature}`", called_on, _default(node), meaning)


def _default(node: ast.FunctionDef) -> str:
    """What the body amounts to, where that is one thing."""
    work = [
        line
        for line in node.body
        if not isinstance(line, (ast.Import, ast.ImportFrom))
        and not (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant))
    ]
    if not work:
        return "does nothing"
    if len(work) == 2 and isinstance(work[0], ast.AnnAssign) and work[0].value:
        # A value that gets its type and is returned.
        assert ast.unparse(work[1]) == f"return {ast.unparse(work[0].target)}", node.name
        work = [ast.Return(work[0].value)]
    text = ast.unparse(work[0])
    if len(work) > 1 or isinstance(work[0], (ast.If, ast.Try, ast.For)):
        return "computed"
    if isinstance(work[0], ast.Raise) or "_not_offered(" in text:
        return "raises `NotImplementedError`"
    text = text.removeprefix("return ")
    text = re.sub(r"self\._enum is _([A-Z]+)", r"_enum is PlatformEnum.\1", text)
    if delegate := re.search(r"_torch_member\('(\w+)'\)\(([^)]*)\)", text):
        return f"`torch.<device_type>.{delegate[1]}({delegate[2]})`"
    private = len(text) > 80 or re.search(r"\b(self|cls)\._|\b_[A-Z]|\b_\w+\(|\[getattr", text)
    return "computed" if private else f"`{text}`"


def _first_sentence(docstring: str) -> str:
    return " ".join(docstring.partition("\n\n")[0].split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _version() -> str:
    source = (ROOT / "platforms" / "interface.py").read_text()
    found = re.search(r"^PLATFORM_API_VERSION = \((\d+), (\d+)\)", source, re.MULTILINE)
    assert found is not None
    return f"{found[1]}.{found[2]}"


if __name__ == "__main__":
    PAGE.write_text(page())

"""Writes docs/api.md from the docstrings of what is public. `make docs` runs it.

    python scripts/api_page.py [--check]

With --check nothing is written; the exit code is 1 where the page is not what would be written.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import is_dataclass
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

PAGE = Path(__file__).parent.parent / "docs" / "api.md"
PUBLIC = ("peili.mirror", "peili.mirror.testing")
FIRST = (
    "peili.mirror.mirror",
    "peili.mirror.serve",
    "peili.mirror.server.listening",
    "peili.mirror.doors.auth",
    "peili.mirror.limits",
    "peili.mirror.metrics.counters",
    "peili.mirror.metrics.collector",
    "peili.mirror.support.watchdog",
    "peili.mirror.plugins.plugin",
    "peili.mirror.plugins.store",
    "peili.mirror.plugins.router",
    "peili.mirror.membership.router",
    "peili.mirror.plugins.resolver",
    "peili.mirror.plugins.loading",
    "peili.mirror.oci.references",
    "peili.mirror.peer_api.peers",
)
"""The order of the sections; others follow by name."""
INTRODUCTION = """\
# API

<!-- Written by `make docs` from the docstrings; edit these. -->

What is here is public, and all that is: `peili.mirror` exports the first part, `peili.mirror.testing` the second.
Everything is typed (`py.typed`). Signatures leave `self` out, and nothing means that None is returned.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check: bool = parser.parse_args().check
    text = page()
    if not check:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
        print("docs/api.md is not what the docstrings say; run: make docs", file=sys.stderr)
        return 1
    return 0


def page() -> str:
    """All of it."""
    blocks = [INTRODUCTION.strip()]
    for module in map(importlib.import_module, PUBLIC):
        blocks += [f"## `{module.__name__}`", paragraphs(inspect.getdoc(module) or "")]
        for home, names in homes(module).items():
            introduction = (inspect.getdoc(home) or "").split("\n\n")[0].replace("\n", " ")
            blocks += [f"### {introduction}"]
            for defined_as, name in names.items():
                blocks += item(name, getattr(module, name), home, defined_as)
    return "\n\n".join(block for block in blocks if block) + "\n"


def homes(module: ModuleType) -> dict[ModuleType, dict[str, str]]:
    """By the modules that define them: the names there, in the order of their definition, with the public ones."""
    tree = ast.parse(inspect.getsource(module))
    found: dict[ModuleType, dict[str, str]] = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module not in {None, "__future__"}:
            home = importlib.import_module(str(node.module))
            order = [name for statement in ast.parse(inspect.getsource(home)).body for name in defined(statement)]
            public = {each.name: each.asname or each.name for each in node.names}
            found[home] = {name: public[name] for name in sorted(public, key=order.index)}
    ranks = {name: rank for rank, name in enumerate(FIRST)}
    return dict(sorted(found.items(), key=lambda each: (ranks.get(each[0].__name__, len(ranks)), each[0].__name__)))


def defined(statement: ast.stmt) -> list[str]:
    """The names that a statement defines."""
    match statement:
        case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
            return [name]
        case ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]):
            return [name]
        case _:
            return []


def item(name: str, value: Any, home: ModuleType, defined_as: str) -> list[str]:
    """The blocks that tell of one public name, which is `defined_as` in its `home`."""
    if inspect.isclass(value):
        return [f"#### `{name}`", code(class_line(value)), described(value, name), *members(value)]
    if inspect.isfunction(value):
        return [f"#### `{name}`", code(function_line(name, value)), described(value, name)]
    return [f"#### `{name}`", code(assigned(defined_as, home)), paragraphs(doc_below(defined_as, home))]


def described(value: object, name: str) -> str:
    """The docstring as Markdown. Raises LookupError where there is none."""
    text = value.__dict__.get("__doc__") if isinstance(value, type) else value.__doc__
    if not text:
        raise LookupError(f"{name} has no docstring")
    return paragraphs(inspect.cleandoc(text))


def class_line(value: type) -> str:
    name = value.__name__
    bases = ", ".join(base.__name__ for base in value.__bases__ if base is not object)
    line = f"class {name}({bases})" if bases else f"class {name}"
    inside = list(fields(value))
    lines = [f"{line}:", *inside] if inside else [line]
    init = value.__dict__.get("__init__")
    if init is not None and not is_dataclass(value):
        lines += ["", f"{name}{signature(init)}"]
    return "\n".join(lines)


def fields(value: type) -> Iterator[str]:
    """The lines that give its public attributes, with the comments beside them."""
    source = textwrap.dedent(inspect.getsource(value)).splitlines()
    body = ast.parse("\n".join(source)).body[0]
    assert isinstance(body, ast.ClassDef)
    inside = [each for each in body.body if any(not name.startswith("_") for name in defined(each))]
    given = [each for each in inside if isinstance(each, (ast.Assign, ast.AnnAssign))]
    if not given:
        return
    last = body.body[body.body.index(given[-1])]
    for line in source[given[0].lineno - 1 : last.end_lineno]:
        if line.strip() and not re.match(r'\s*(_\w+\b.*=|""")', line):
            yield line


def members(value: type) -> Iterator[str]:
    """The blocks of its public methods and properties; of special ones where they have something to say."""
    for name, member in value.__dict__.items():
        function = getattr(member, "__func__", member)
        if isinstance(member, property) and not name.startswith("_"):
            yield entry(f"{name}: {annotation(member.fget)}", member, f"{value.__name__}.{name}")
        elif inspect.isfunction(function) and (not name.startswith("_") or special(name, function)):
            prefix = "classmethod " if isinstance(member, classmethod) else ""
            line = prefix + function_line(name, function)
            yield entry(line, overridden(value, name, function), f"{value.__name__}.{name}")


def special(name: str, function: Any) -> bool:
    return re.fullmatch(r"__\w+__", name) is not None and name != "__init__" and bool(function.__doc__)


def overridden(value: type, name: str, function: Any) -> Any:
    """`function`, or what it overrides where it has nothing to add."""
    if function.__doc__:
        return function
    above = (base.__dict__[name] for base in value.__mro__[1:] if name in base.__dict__)
    return next((getattr(each, "__func__", each) for each in above if each.__doc__), function)


def entry(line: str, value: object, name: str) -> str:
    return f"{code(line)}\n\n{described(value, name)}"


def annotation(function: Any) -> str:
    return str(function.__annotations__.get("return", "object"))


def function_line(name: str, function: Any) -> str:
    inner = inspect.unwrap(function)
    prefix = ""
    if inner is not function:
        prefix = "async with " if inspect.isasyncgenfunction(inner) else "with "
    elif inspect.iscoroutinefunction(function):
        prefix = "async "
    return f"{prefix}{name}{signature(function)}"


def signature(function: Any) -> str:
    """As in the source, without `self`."""
    found = inspect.signature(function)
    parameters = [each for each in found.parameters.values() if each.name not in {"self", "cls"}]
    shown: list[str] = []
    for each in parameters:
        if each.kind is each.KEYWORD_ONLY and "*" not in shown and not any(name.startswith("*") for name in shown):
            shown.append("*")
        shown.append(parameter(each))
    result = function.__annotations__.get("return")
    arrow = "" if result in {None, "None"} else f" -> {result}"
    line = f"({', '.join(shown)}){arrow}"
    if len(line) < 90:
        return line
    return "(\n" + "".join(f"    {each},\n" for each in shown) + f"){arrow}"


def parameter(each: inspect.Parameter) -> str:
    stars = "*" if each.kind is each.VAR_POSITIONAL else "**" if each.kind is each.VAR_KEYWORD else ""
    kind = "" if each.annotation is each.empty else f": {each.annotation}"
    if each.default is each.empty:
        return f"{stars}{each.name}{kind}"
    default = repr(each.default).replace("'", '"')
    return f"{each.name}{kind} = {default if ' at 0x' not in default else '…'}"


def assigned(name: str, home: ModuleType) -> str:
    source = inspect.getsource(home)
    for statement in ast.parse(source).body:
        if defined(statement) == [name] and isinstance(statement, (ast.Assign, ast.AnnAssign)):
            assert statement.value is not None
            return f"{name} = {ast.get_source_segment(source, statement.value)}"
    raise LookupError(name)


def doc_below(name: str, home: ModuleType) -> str:
    """The string that stands below an assignment."""
    body = ast.parse(inspect.getsource(home)).body
    for statement, below in pairwise(body):
        if defined(statement) == [name]:
            match below:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    return inspect.cleandoc(text)
                case _:
                    break
    raise LookupError(f"{name} has no docstring")


def code(text: str) -> str:
    return f"```python\n{text}\n```"


def paragraphs(text: str) -> str:
    """A docstring as Markdown: what is below ``Args:`` or ``Attributes:`` becomes a list."""
    lines: list[str] = []
    for line in text.splitlines():
        if re.fullmatch(r"\w[\w, ]*:|Attributes, .*:", line):
            lines += [line, ""]
        elif found := re.match(r" {4}(\w[\w, ]*): (.*)", line):
            lines.append(f"- `{found[1]}`: {found[2]}")
        elif line.startswith("    ") and lines and lines[-1].startswith(("- ", "  ")):
            lines.append(f"  {line.strip()}")
        else:
            lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

"""YAML as data, as nodes that know where they stand in the text, and as documents that keep their comments.

The only module that needs ruamel.yaml. What the files mean is their adapters' business.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard, TypeVar

try:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError
    from ruamel.yaml.nodes import Node
except ImportError as missing:
    raise ImportError("files of k3s and Talos need ruamel.yaml: install peili[command]") from missing

T = TypeVar("T")

_MOST_VALUES = 200_000
"""How many values a text may stand for: aliases of aliases make a short one stand for any number."""


class NotYaml(ValueError):
    """The text is no YAML, or more than one reads at once. The message is one line."""


def is_table(value: Any) -> TypeGuard[dict[Any, Any]]:
    """Whether it is a mapping."""
    return isinstance(value, dict)


def is_list(value: Any) -> TypeGuard[list[Any]]:
    """Whether it is a list."""
    return isinstance(value, list)


def plain(text: str) -> list[Any]:
    """The documents in `text` as dicts, lists and scalars, each value a copy of its own. Raises NotYaml."""
    loader: Any = YAML(typ="safe", pure=True)
    loaded: list[Any] = _read(lambda: list(loader.load_all(text)))
    left = [_MOST_VALUES]
    return _read(lambda: [_copy(document, left) for document in loaded])


def one_plain(text: str) -> Any:
    """The one document in `text`; None where there is none. Raises NotYaml."""
    documents = plain(text)
    if len(documents) > 1:
        raise NotYaml(f"{len(documents)} documents, where one belongs")
    return documents[0] if documents else None


def root_node(text: str) -> Node | None:
    """The root of the one document in `text`; the marks of nodes count characters. Raises NotYaml."""
    loader: Any = YAML(pure=True)
    root: Node | None = _read(lambda: loader.compose(text))
    return root


def documents(text: str) -> list[Any]:
    """The documents in `text`, mappings and lists that keep order, comments and quotes. Raises NotYaml."""
    keeping = _keeping()
    return _read(lambda: list(keeping.load_all(text)))


def dumped(values: Sequence[Any]) -> str:
    """`values` as a text of as many documents."""
    stream = io.StringIO()
    _keeping().dump_all(values, stream)
    return stream.getvalue()


def _keeping() -> Any:
    keeping: Any = YAML(pure=True)  # its annotations say None for what may be set
    keeping.preserve_quotes = True
    keeping.width = 4096  # no line is broken
    keeping.indent(mapping=2, sequence=4, offset=2)
    return keeping


def _read(reading: Callable[[], T]) -> T:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # an anchor given twice: nobody knows which one is meant
            return reading()
    except YAMLError as error:
        raise NotYaml(_one_line(error)) from error
    except RecursionError as error:
        raise NotYaml("nested too deeply") from error
    except NotYaml:
        raise
    except Exception as error:  # what ruamel.yaml raises besides for what can't be a date, a number, …
        raise NotYaml(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from error


def _one_line(error: YAMLError) -> str:
    """Its reason and its place; ruamel.yaml's own text has several lines, some of them a piece of the file."""
    mark = getattr(error, "problem_mark", None)
    reason = getattr(error, "problem", None) or str(error).strip().splitlines()[0]
    place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
    return f"{place}{' '.join(str(reason).split())[:200]}"


def _copy(value: Any, left: list[int]) -> Any:
    left[0] -= 1
    if left[0] < 0:
        raise NotYaml(f"more than {_MOST_VALUES} values")
    if is_table(value):
        return {key: _copy(each, left) for key, each in value.items()}
    return [_copy(each, left) for each in value] if is_list(value) else value

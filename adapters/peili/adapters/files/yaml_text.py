"""Reads YAML as plain values, as nodes with their position in the text, and as documents that keep their comments.

This is the only module of the adapters that needs ruamel.yaml.
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

_MAX_VALUES = 200_000
"""How many values a text may expand to. With aliases of aliases, a short text can expand to any number."""


class NotYaml(ValueError):
    """The text is not YAML, or expands to too many values. The message is one line."""


def is_table(value: Any) -> TypeGuard[dict[Any, Any]]:
    """Return whether `value` is a mapping."""
    return isinstance(value, dict)


def is_list(value: Any) -> TypeGuard[list[Any]]:
    """Return whether `value` is a list."""
    return isinstance(value, list)


def parse_all(text: str) -> list[Any]:
    """Return the documents in `text` as dicts, lists and scalars; aliases are copied. Raises NotYaml."""
    loader: Any = YAML(typ="safe", pure=True)
    loaded: list[Any] = _read(lambda: list(loader.load_all(text)))
    budget = [_MAX_VALUES]
    return _read(lambda: [_copy(document, budget) for document in loaded])


def parse_one(text: str) -> Any:
    """Return the only document in `text`, or None if there is none. Raises NotYaml, also for several documents."""
    documents = parse_all(text)
    if len(documents) > 1:
        raise NotYaml(f"{len(documents)} documents, but only one is allowed")
    return documents[0] if documents else None


def parse_root_node(text: str) -> Node | None:
    """Return the root node of the only document in `text`. The marks of nodes count characters. Raises NotYaml."""
    loader: Any = YAML(pure=True)
    root: Node | None = _read(lambda: loader.compose(text))
    return root


def parse_documents(text: str) -> list[Any]:
    """Return the documents in `text`. Their mappings and lists keep order, comments and quotes. Raises NotYaml."""
    parser = _round_trip_parser()
    return _read(lambda: list(parser.load_all(text)))


def dump(values: Sequence[Any]) -> str:
    """Return `values` as text, one document each."""
    stream = io.StringIO()
    _round_trip_parser().dump_all(values, stream)
    return stream.getvalue()


def _round_trip_parser() -> Any:
    parser: Any = YAML(pure=True)  # Any: its annotations allow only None for attributes that may be set
    parser.preserve_quotes = True
    parser.width = 4096  # do not wrap lines
    parser.indent(mapping=2, sequence=4, offset=2)
    return parser


def _read(reader: Callable[[], T]) -> T:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # for example an anchor that is defined twice: its meaning is uncertain
            return reader()
    except YAMLError as error:
        raise NotYaml(_one_line(error)) from error
    except RecursionError as error:
        raise NotYaml("nested too deeply") from error
    except NotYaml:
        raise
    except Exception as error:  # ruamel.yaml raises other errors for invalid dates, numbers, …
        raise NotYaml(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from error


def _one_line(error: YAMLError) -> str:
    """Return the reason and the position; ruamel.yaml's own message has several lines and quotes the file."""
    mark = getattr(error, "problem_mark", None)
    reason = getattr(error, "problem", None) or str(error).strip().splitlines()[0]
    position = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
    return f"{position}{' '.join(str(reason).split())[:200]}"


def _copy(value: Any, budget: list[int]) -> Any:
    budget[0] -= 1
    if budget[0] < 0:
        raise NotYaml(f"more than {_MAX_VALUES} values")
    if is_table(value):
        return {key: _copy(each, budget) for key, each in value.items()}
    return [_copy(each, budget) for each in value] if is_list(value) else value

"""YAML as data, as nodes that know where they stand in the text, and as documents that keep their comments.

The only module that needs ruamel.yaml. What the files mean is their adapters' business.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

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


def plain(text: str) -> list[Any]:
    """The documents in `text` as dicts, lists and scalars, each value a copy of its own. Raises NotYaml."""
    loader = YAML(typ="safe", pure=True)
    loaded = _read(lambda: list(cast("Any", loader.load_all(text))))  # pyright: ignore[reportUnknownMemberType]
    left = [_MOST_VALUES]
    return [_read(lambda document=document: _copy(document, left)) for document in loaded]


def one_plain(text: str) -> Any:
    """The one document in `text`; None where there is none. Raises NotYaml."""
    documents = plain(text)
    if len(documents) > 1:
        raise NotYaml(f"{len(documents)} documents, where one belongs")
    return documents[0] if documents else None


def root_node(text: str) -> Node | None:
    """The root of the one document in `text`; the marks of nodes count characters. Raises NotYaml."""
    return cast("Node | None", _read(lambda: cast("Any", YAML(pure=True)).compose(text)))


def documents(text: str) -> list[Any]:
    """The documents in `text`, mappings and lists that keep order, comments and quotes. Raises NotYaml."""
    return _read(lambda: list(cast("Any", _keeping()).load_all(text)))


def dumped(values: Sequence[Any]) -> str:
    """`values` as a text of as many documents."""
    stream = io.StringIO()
    cast("Any", _keeping()).dump_all(values, stream)
    return stream.getvalue()


def _keeping() -> YAML:
    keeping = YAML(pure=True)
    keeping.preserve_quotes = True  # type: ignore[assignment]  # declared as None
    keeping.width = 4096  # type: ignore[assignment]  # no line is broken
    keeping.indent(mapping=2, sequence=4, offset=2)  # pyright: ignore[reportUnknownMemberType]
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
    if isinstance(value, dict):
        return {key: _copy(each, left) for key, each in cast("dict[Any, Any]", value).items()}
    if isinstance(value, list):
        return [_copy(each, left) for each in cast("list[Any]", value)]
    return value

"""Whether k3s can read a registries.yaml: where it can't, it does not start, and what the file means nobody can say.

k3s has a parser of YAML 1.1, and this process one of 1.2. What was compared with k3s's own is in tests/judge.
"""

from __future__ import annotations

import re
from typing import Any

from peili.adapters.files.yaml_text import is_list, is_table

_LINE_ENDS = re.compile("[\x85\u2028\u2029]")
_DIRECTIVE = re.compile(r"^%", re.MULTILINE)
_SWITCHES = {"y", "yes", "on", "true", "n", "no", "off", "false"}


class Unusable(ValueError):
    """The text can't be changed as wanted, and is left alone. The message is one line that says why."""


def check_form(text: str, root: dict[Any, Any]) -> None:
    """That k3s reads `text`, which says `root`, as it is meant. Raises Unusable."""
    if found := _LINE_ENDS.search(text):
        raise Unusable(f"it has the character U+{ord(found[0]):04X}, which k3s takes for the end of a line")
    if _DIRECTIVE.search(text):
        raise Unusable("it has a line that begins with %, which k3s may not understand")
    if r"\/" in text:
        raise Unusable(r"it has \/ where k3s wants a slash alone")
    _check_keys(root)
    _check_mirrors(root.get("mirrors"))
    for name in ("configs", "auths"):
        _check_tables(name, root.get(name))
    configs: dict[Any, Any] = root.get("configs") or {}
    for host, said in configs.items():
        _check_config(f"configs.{host}", said or {})


def _check_keys(value: Any) -> None:
    if is_table(value):
        if odd := [key for key in value if not isinstance(key, (str, int, float))]:
            raise Unusable(f"a key is no text: {odd[0]!a}")
        for each in value.values():
            _check_keys(each)
    elif is_list(value):
        for each in value:
            _check_keys(each)


def _check_mirrors(mirrors: Any) -> None:
    if mirrors is not None and not is_table(mirrors):
        raise Unusable("mirrors: a mapping of registries is wanted")
    for registry, said in (mirrors or {}).items():
        if not isinstance(registry, str):
            raise Unusable(f"mirrors: names of registries are wanted, not {registry!r}")
        if said is not None and not is_table(said):
            raise Unusable(f"mirrors.{registry}: a mapping with endpoint and rewrite is wanted")
        endpoints: Any = said.get("endpoint") if said else None
        if endpoints is not None and not (is_list(endpoints) and all(isinstance(each, str) for each in endpoints)):
            raise Unusable(f"mirrors.{registry}.endpoint: a list of URLs is wanted")
        _check_texts(f"mirrors.{registry}.rewrite", said.get("rewrite") if said else None)


def _check_config(where: str, said: dict[Any, Any]) -> None:
    for key in ("auth", "tls"):
        _check_texts(f"{where}.{key}", said.get(key))
    tls: dict[Any, Any] = said.get("tls") or {}
    switch: Any = tls.get("insecure_skip_verify")
    if switch is not None and str(switch).lower() not in _SWITCHES:
        raise Unusable(f"{where}.tls.insecure_skip_verify: true or false is wanted")


def _check_tables(where: str, value: Any) -> None:
    if value is not None and not is_table(value):
        raise Unusable(f"{where}: a mapping is wanted")
    for key, each in (value or {}).items():
        if each is not None and not is_table(each):
            raise Unusable(f"{where}.{key}: a mapping is wanted")


def _check_texts(where: str, value: Any) -> None:
    if value is not None and not is_table(value):
        raise Unusable(f"{where}: a mapping is wanted")
    for key, each in (value or {}).items():
        if is_table(each) or is_list(each):
            raise Unusable(f"{where}.{key}: text is wanted")

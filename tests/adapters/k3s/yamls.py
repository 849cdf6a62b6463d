"""Texts of registries.yaml: the documented examples, and a strategy that generates others in several styles."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from peili.adapters.files.yaml_text import is_list, is_table

PEILI = "http://127.0.0.1:5050"

PRIVATE = """\
mirrors:
  docker.io:
    endpoint:
      - "https://mycustomreg.com:5000"
configs:
  "mycustomreg:5000":
    auth:
      username: xxxxxx # this is the registry username
      password: xxxxxx # this is the registry password
    tls:
      cert_file: /etc/ssl/reg.pem # path to the cert file used in the registry
      key_file:  /etc/ssl/reg.key # path to the key file used in the registry
      ca_file:   /etc/ssl/ca.pem  # path to the ca file used in the registry
"""

REWRITE = """\
mirrors:
  docker.io:
    endpoint:
      - "https://registry.example.com:5000"
    rewrite:
      "^rancher/(.*)": "mirrorproject/rancher-images/$1"
"""

EMBEDDED = """\
mirrors:
  docker.io:
  registry.k8s.io:
"""

WITH_WILDCARD = """\
mirrors:
  "*":
    endpoint:
      - "https://registry.example.com:5000"
  registry.example.com:
    endpoint: ["http://one.example:5000", "http://two.example:5000/v2/proxy"]
configs:
  "registry.example.com:5000":
    tls: {insecure_skip_verify: true}
"""

ONLY_CONFIGS = """\
# credentials only
configs:
  "registry.example.com":
    auth: {username: me, password: secret}
"""

DOCUMENTED = {
    "private": PRIVATE,
    "rewrite": REWRITE,
    "embedded": EMBEDDED,
    "wildcard": WITH_WILDCARD,
    "only configs": ONLY_CONFIGS,
}


@dataclass(frozen=True, slots=True)
class Style:
    """A style of writing YAML."""

    indent: int
    compact: bool  # lists begin where their key does
    flow: int  # from which depth on there are brackets
    padded: bool  # "[ x ]", not "[x]"
    quotes: bool
    newline: str
    ended: bool
    comments: bool


STYLES = st.builds(
    Style,
    indent=st.integers(1, 5),
    compact=st.booleans(),
    flow=st.integers(0, 5),
    padded=st.booleans(),
    quotes=st.booleans(),
    newline=st.sampled_from(["\n", "\r\n"]),
    ended=st.booleans(),
    comments=st.booleans(),
)

_URLS = st.sampled_from(["https://a.example", "http://b.example:5000", "https://c.example/v2/proxy", PEILI])
_REGISTRIES = st.sampled_from(["docker.io", "quay.io", "*", "registry.example.com:5000", "localhost:80"])
_ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "endpoint": st.none() | st.lists(_URLS, max_size=3, unique=True),
        "rewrite": st.dictionaries(st.sampled_from(["^rancher/(.*)", "a: #b"]), st.just("x/$1"), max_size=2),
        "other": st.none() | st.booleans() | st.just("text"),
    },
)
VALUES = st.none() | st.fixed_dictionaries(
    {},
    optional={
        "configs": st.dictionaries(
            _REGISTRIES, st.fixed_dictionaries({"auth": st.just({"password": "x"})}), max_size=2
        ),
        "mirrors": st.none() | st.dictionaries(_REGISTRIES, st.none() | _ENTRIES, max_size=3),
    },
)


def written(value: Any, style: Style) -> str:
    """Return `value` as YAML in `style`."""
    lines = ["# registries", *(_block(value, style, 0) if value else [])]
    lines = lines if style.comments or not value else lines[1:]
    if style.comments:
        lines.append("# the end")
    return style.newline.join(lines) + (style.newline if style.ended else "")


def _block(value: Any, style: Style, depth: int) -> list[str]:
    if _is_flow(value, style, depth):
        return [_flow(value, style)]
    pad = " " * style.indent
    if is_list(value):
        return [f"- {_scalar(each, style)}{_comment(style)}" for each in value]
    lines: list[str] = []
    for key, each in value.items():
        nested = _block(each, style, depth + 1)
        if _is_flow(each, style, depth + 1):
            lines.append(f"{_scalar(key, style)}:{' ' + nested[0] if nested[0] else ''}{_comment(style)}")
        else:
            under = "" if style.compact and isinstance(each, list) else pad
            lines += [f"{_scalar(key, style)}:{_comment(style)}", *(under + line for line in nested)]
            lines += [""] if style.comments else []
    return lines


def _is_flow(value: Any, style: Style, depth: int) -> bool:
    return depth >= style.flow or not (is_table(value) or is_list(value)) or not value


def _flow(value: Any, style: Style) -> str:
    space = " " if style.padded else ""
    if is_table(value):
        inner = ", ".join(f"{_scalar(key, style)}: {_flow(each, style) or 'null'}" for key, each in value.items())
        return f"{{{space}{inner}{space}}}"
    if is_list(value):
        return f"[{space}{', '.join(_scalar(each, style) for each in value)}{space}]"
    return _scalar(value, style)


def _scalar(value: Any, style: Style) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    quoted = style.quotes or any(mark in value for mark in "*#[(")
    return json.dumps(value) if quoted else value


def _comment(style: Style) -> str:
    return "  # note" if style.comments else ""
